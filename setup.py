"Hands the dependency ranges of settings.ini to setuptools; everything else about the package is in pyproject.toml."
from configparser import ConfigParser

from setuptools import setup

cfg = ConfigParser()
cfg.read("settings.ini")
settings = cfg["DEFAULT"]
suffix = "_requirements"
extras = {key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)}
setup(install_requires=settings["requirements"].split(), extras_require=extras)
