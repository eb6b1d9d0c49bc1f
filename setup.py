"""Hands the dependency ranges of settings.ini to setuptools; everything else about the package is in pyproject.toml.

clca/ holds nothing but what the notebooks export, so the mark by which type checkers know a typed package is made here."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser()
cfg.read("settings.ini")
settings = cfg["DEFAULT"]
suffix = "_requirements"
extras = {key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)}
Path("clca/py.typed").touch()
setup(install_requires=settings["requirements"].split(), extras_require=extras)
