"Hands the dependency ranges of settings.ini to setuptools; everything else about the package is in pyproject.toml."
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser()
cfg.read('settings.ini')
setup(install_requires=cfg['DEFAULT']['requirements'].split(),
      extras_require={k.removesuffix('_requirements'): v.split() for k, v in cfg['DEFAULT'].items() if k.endswith('_requirements')})
