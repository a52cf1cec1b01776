"""The tables that `python -m cxrjax.embed` writes: what goes in, how they grow on disk, and what is asked of them."""
