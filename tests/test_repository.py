"The files that are generated, pinned or promised agree with what they come from."
import os, re, shutil, subprocess, sys, sysconfig
from importlib.metadata import distributions, version
import nbformat, pytest, yaml
from configparser import ConfigParser
from packaging.requirements import Requirement
from packaging.version import Version
from repository import readme
from helpers import ROOT

def settings():
    cfg = ConfigParser()
    cfg.read(ROOT/'settings.ini')
    return cfg['DEFAULT']

def requirements(key): return [Requirement(r) for r in settings()[key].split()]

def normal(name): return re.sub(r'[-_.]+', '-', name).lower()

def pins():
    lines = (line.split('#')[0].strip() for line in (ROOT/'constraints.txt').read_text().splitlines())
    return {normal(r.name): next(iter(r.specifier)).version for r in map(Requirement, filter(None, lines))}

def tracked():
    "Files of the repository: what git tracks, or, without git, what is there."
    if not (ROOT/'.git').exists(): return [p for p in ROOT.rglob('*') if p.is_file() and not any(part[0] == '.' for part in p.relative_to(ROOT).parts)]
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    return [ROOT/n for n in names if n and (ROOT/n).is_file()]

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob('*'))
                              if p.suffix in ('.py', '.ipynb') and '.ipynb_checkpoints' not in p.parts}

def differing(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))

@pytest.fixture(scope='module')
def regenerated(tmp_path_factory):
    "A copy in which clca/ was made anew from the notebooks and these were cleaned; with one notebook more, whose tag must survive."
    copy = tmp_path_factory.mktemp('copy')
    for name in ('nbs', 'settings.ini'): (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, copy/name)
    cell = nbformat.v4.new_code_cell('keep: float = 0.1 # share of tokens', metadata={'tags': ['parameters'], 'collapsed': True})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), copy/'nbs'/'tagged.ipynb')
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    for call in ('from nbdev.doclinks import nbdev_export as f; f()', 'from nbdev.clean import nbdev_clean as f; f()'):
        subprocess.run([sys.executable, '-c', call], cwd=copy, env=env, check=True, capture_output=True, text=True)
    yield copy

def test_package_is_what_the_notebooks_export(regenerated):
    assert not differing(contents(regenerated/'clca'), contents(ROOT/'clca')), 'run make prepare'

def test_notebooks_are_clean(regenerated):
    assert differing(contents(regenerated/'nbs'), contents(ROOT/'nbs')) == ['tagged.ipynb'], 'run make prepare'

def test_cleaning_keeps_the_parameters_tag(regenerated):
    cell = nbformat.read(regenerated/'nbs'/'tagged.ipynb', 4).cells[0]
    assert cell.metadata == {'tags': ['parameters']}

def test_readme_is_what_its_notebook_says(): assert (ROOT/'README.md').read_text() == readme(), 'run make readme'

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)#]+)|src="([^"]+)"', (ROOT/'README.md').read_text())
    assert not [n for n in map(''.join, links) if '://' not in n and not (ROOT/n).exists()]

def test_every_requirement_is_pinned_within_its_range():
    pinned = pins()
    for key in settings():
        if not key.endswith('requirements'): continue
        for r in requirements(key): assert Version(pinned[normal(r.name)]) in r.specifier, f'{r} ({key}) and constraints.txt disagree'

def test_installed_versions_are_the_pinned_ones():
    pinned, own = pins(), {normal(d.name): Version(d.version).public for d in distributions(path=[sysconfig.get_path('purelib')]) if d.name}
    assert not {n: (v, pinned[n]) for n, v in own.items() if n in pinned and v != pinned[n]}, 'installed, pinned: make the environment anew'

def test_package_metadata_comes_from_settings():
    import clca
    assert version('clca') == clca.__version__ == settings()['version']
    project = (ROOT/'pyproject.toml').read_text()
    assert f'">={settings()["min_python"]}"' in project and f'description = "{settings()["description"]}"' in project

def test_conda_and_make_install_the_same():
    env = yaml.safe_load((ROOT/'environment.yml').read_text())
    pip = next(d['pip'] for d in env['dependencies'] if isinstance(d, dict))
    install = re.search(r'pip install --quiet (.*)', (ROOT/'Makefile').read_text())[1].replace("'", '')
    assert ' '.join(pip) == install == '-c constraints.txt -e .[dev,export]'
    assert f'python={settings()["min_python"]}' in env['dependencies']

def test_no_large_files(): assert not [p for p in tracked() if p.stat().st_size > 2**20]

def test_no_paths_of_a_machine():
    path = re.compile(rb'(?<![\w.:/~+-])/(?:work|farm|root|home)\b/?[\w.-]*')
    assert not {(p.name, m[0]) for p in tracked() if p.suffix not in ('.png', '.jpg', '.safetensors', '.npz') for m in path.finditer(p.read_bytes())}

def test_ci_is_executable(): assert os.access(ROOT/'.ci'/'run', os.X_OK)
