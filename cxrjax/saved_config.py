"""The config of a run that was made: `--config=runs/<name>/config.json` is read through this file."""

from pathlib import Path

from cxrjax import config as shared
from cxrjax import sizes
from cxrjax.config import ConfigDict


def get_config(path: str) -> ConfigDict:
    """The settings in a config.json, by today's keys; what was left open may be given on the command line.

    Raises ValueError naming the file where it is no JSON.
    """
    found = shared.read(Path(path))
    whole = shared.pretrain() if found.job == "pretrain" else ConfigDict()
    with whole.ignore_type():
        whole.update({key: value for key, value in found.items() if value is not None})
        for section in ("model", "teachers"):
            if section in whole and "image_px" in whole[section]:
                whole[section].image_px = sizes.setting(whole[section].image_px)
    return whole
