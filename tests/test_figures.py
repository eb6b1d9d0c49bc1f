"The figures notebook with own runs, and that what it writes is complete, labelled and without machine paths."
import json
import numpy as np, papermill, pytest
from helpers import ROOT

HEADS = dict(base=('linear', False), clc=('linear', True), cla=('cla', False), clca=('cla', True))

@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    for v, (head, cache) in HEADS.items():
        for keep in (.1, .5):
            for seed in range(2):
                (folder := tmp_path/'store'/f'{v}-{keep}-{seed}').mkdir(parents=True)
                m = dict(dataset='typefaces', image_size=64, backbone='vit', reducer='evit', keep=keep, head=head, cache=cache, at=[3, 6, 9],
                         seed=seed, gmacs=keep, test_top1=float(rng.uniform(.5, .9)), images_per_second=100., batch_size=8, data_hash='abc',
                         out=str(tmp_path), data_root=str(tmp_path))
                (folder/'metrics.json').write_text(json.dumps(m))
                (folder/'gradients.csv').write_text('step,max_grad\n' + ''.join(f'{i},{rng.uniform(.1, 2):.3f}\n' for i in range(20)))
    (tmp_path/'store'/'broken').mkdir()
    return tmp_path/'store'

def test_own_runs(store, tmp_path):
    from clca.lab.runs import collect_runs
    runs, out = collect_runs(tmp_path/'runs.jsonl', store), tmp_path/'figures'
    papermill.execute_notebook(str(ROOT/'nbs'/'figures.ipynb'), str(tmp_path/'done.ipynb'), dict(source='own', runs=str(runs), out=str(out)),
                               cwd=str(ROOT), progress_bar=False, execution_timeout=120)
    names = {f.stem for f in out.glob('*.png')}
    assert names == {'accuracy_cost', 'cache_gain_runs', 'contrasts_runs', 'gradients_runs', 'method'}
    for n in names:
        record, svg = json.loads((out/f'{n}.json').read_text()), (out/f'{n}.svg').read_text()
        assert record['figure'] == n and record['runs'] and record['versions']['matplotlib'] and 'figures.ipynb' in record['command']
        if n != 'method': assert record['data_hash'] == {'typefaces, 64 px': 'abc'} and set(record['runs']) <= {f.name for f in store.iterdir()}
        assert '<dc:date>' not in svg
