"""How an exported encoder wants its pictures fitted, in words and in lines of Python, for the card of its folder."""

from cxrjax.sizes import Px, sides


def in_words(sees: str, px: Px) -> str:
    """What to do with a picture before it is scaled. sees: "whole", "image" or "image<N>", as of `crops.fit_as`."""
    height, width = sides(px)
    if sees == "whole":
        return f"Stretch the picture to {height} x {width} px."
    short, crop = sees.removeprefix("image"), f"aspect kept; crop the {height} x {width} px in the middle."
    if height == width:
        return f"Resize the short side to {short or height} px, {crop}"
    smallest = f" and whose short side has {short} px" if short else ""
    return (
        f"Resize the picture to the smallest size that covers {height} x {width} px{smallest}, {crop} The processor "
        "leaves black edges where the aspect is another; the lines below do not."
    )


def lines(sees: str, px: Px) -> str:
    """Python that brings `grey`, uint8 h w, to the pixels that `crops.fit_as` gives."""
    height, width = sides(px)
    if sees == "whole":
        size, crop = f"({width}, {height})", ""
    else:
        short = int(sees.removeprefix("image") or min(height, width))
        if height == width:
            size = f"tuple(max({short}, round(side * ({short} / min(grey.shape)))) for side in grey.shape[::-1])"
        else:
            scale = f"max({short} / min(grey.shape), {height} / grey.shape[0], {width} / grey.shape[1])"
            size = f"(max({width}, round(grey.shape[1] * {scale})), max({height}, round(grey.shape[0] * {scale})))"
        crop = (
            f"\ntop, left = (grey.shape[0] - {height}) // 2, (grey.shape[1] - {width}) // 2\n"
            f"grey = grey[top : top + {height}, left : left + {width}]"
        )
    return (
        f"size = {size}  # width, height\n"
        "enlarges = size[0] > grey.shape[1] or size[1] > grey.shape[0]\n"
        "grey = cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA)" + crop
    )
