"""Puts configs/ into a wheel as cxrjax/configs, where named.py finds them; all else is in pyproject.toml."""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            place = f"{self.build_lib}/cxrjax/configs"
            shutil.copytree("configs", place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfigs})
