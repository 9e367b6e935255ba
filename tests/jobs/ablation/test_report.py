"""The report on hand-made runs: every figure follows the results."""

import json

from lib.errors import UserError

import pytest

from jobs.ablation import pictures, report
from jobs.ablation.__main__ import main
from jobs.ablation.claims import CLAIMS
from jobs.ablation.results import Results
from jobs.ablation.sets import SETS


@pytest.fixture
def kept(tmp_path, tiny, made_up):
    """Results with two seeds of two arms, and a diverged run of a third."""
    results = Results(tmp_path)
    for seed in (0, 1):
        results.add('tiny', made_up(tiny, 'paper', seed, 0.5 + 0.02 * seed))
        results.add('tiny', made_up(tiny, 'no-warmup', seed, 0.3))
    results.add('tiny', made_up(tiny, 'once', 0, 0.3, diverged=9))
    return results


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(pictures, 'draw', lambda evidence, directory: {'claim2.png'})


def test_a_verdict_for_every_claim_in_every_set_with_n(kept, tiny):
    table = report.verdict_table({'tiny': kept.by_arm(tiny)}).splitlines()[2:]
    assert len(table) == len(CLAIMS)
    assert table[1].endswith('| **held** (n = 2; 1 of 2 held) |')  # of equal losses "lower" did not hold
    assert all(line.endswith('| not run |') for line in table[:1] + table[2:])


def test_report_is_rewritten_from_the_results_alone(kept, tmp_path, without_pictures):
    assert main(['--report', '--results', str(tmp_path)]) == 0
    text = (tmp_path / 'README.md').read_text()
    assert '0.510 ± 0.014 | 0.300 ± 0.000 | 2 | +0.210 | +0.147 to +0.273 | **held** |' in text
    path = tmp_path / 'results' / 'tiny' / 'paper-0.json'
    run = json.loads(path.read_text())
    run['log']['validation/main/accuracy'][1] = 0.4
    path.write_text(json.dumps(run))
    assert main(['--report', '--results', str(tmp_path)]) == 0
    text = (tmp_path / 'README.md').read_text()
    assert '0.460 ± 0.085 | 0.300 ± 0.000 | 2 | +0.160 |' in text


def test_report_has_every_claim_and_its_picture_if_there_is_one(kept, tmp_path, without_pictures):
    report.write(kept)
    text = (tmp_path / 'README.md').read_text()
    for claim in CLAIMS:
        assert f'## {claim.number}. {claim.title}' in text
    assert '](claim2.png)' in text and '](claim3.png)' not in text
    assert 'diverged: 1' in text and '| `goyal` |' in text and 'not chosen yet' in text


def test_remarks_are_filled_in_with_figures_of_the_results(kept, tmp_path, without_pictures):
    (tmp_path / 'remarks.md').write_text(
        'Not shown.\n\n## summary\nIn all {tiny paper final}.\n\n## 2\n'
        'Gains {tiny paper - no-warmup final}; {tiny goyal final}; {tiny paper - goyal mean}.\n')
    report.write(kept)
    text = (tmp_path / 'README.md').read_text()
    assert 'In all 0.510 ± 0.014.' in text and 'Gains +0.210; not run; not run.' in text
    assert 'Not shown' not in text


@pytest.mark.parametrize('figure', ['{tiny paper speed}', '{tiny papre final}', '{other paper final}',
                                    '{tiny paper - goyle final}'])
def test_remark_on_what_is_no_figure_is_a_user_error(kept, tmp_path, figure):
    (tmp_path / 'remarks.md').write_text(f'## 1\nSee {figure}.\n')
    with pytest.raises(UserError, match='is no figure'):
        report.compose(kept, {'tiny': kept.by_arm(SETS['tiny'])}, set())


def test_explored_seeds_do_not_count(tmp_path, tiny, made_up):
    results = Results(tmp_path)
    results.add('tiny', made_up(tiny, 'paper', 100, 0.9))
    results.add('tiny', made_up(tiny, 'paper', 1, 0.3))
    assert list(results.by_arm(tiny)['paper']) == [1]


def test_chosen_rate_is_told_with_what_it_was_chosen_by(tmp_path, tiny, made_up):
    results = Results(tmp_path)
    for eta_scale, accuracy in ((4, 0.31), (8, 0.25)):
        run = made_up(tiny, 'goyal', 100, accuracy, eta_scale=eta_scale)
        results.add('tiny', {**run, 'arm': f'goyal-eta{eta_scale}'})
    (sentence,) = report.choices(results, tiny)
    assert '(4: 0.310, 8: 0.250): **4**.' in sentence


def test_small_differences_are_called_small(tmp_path, tiny, made_up):
    results = Results(tmp_path)
    for seed in (0, 1, 2):
        results.add('tiny', made_up(tiny, 'paper', seed, 0.31 + 0.01 * seed))
        results.add('tiny', made_up(tiny, 'no-warmup', seed, 0.3 + 0.01 * seed))
    table = report.comparison_table({'tiny': results.by_arm(tiny)}, CLAIMS[1])
    assert 'held**, by less than the margin' in table


def test_pictures_are_drawn_of_unfinished_sets_and_diverged_runs(kept, tmp_path, tiny, made_up):
    run = made_up(tiny, 'no-warmup', 1, 0.3, diverged=1)  # within the first epoch
    run['log'] = {key: [] for key in run['log']}
    run['loss']['means'] = []
    kept.add('tiny', run)
    drawn = pictures.draw({'tiny': kept.by_arm(tiny)}, tmp_path)
    assert drawn == {'claim2.png', 'claim6.png', 'transition.png'}
    assert all((tmp_path / name).read_bytes().startswith(b'\x89PNG') for name in drawn)


def test_stored_results_are_those_of_today_s_sets_and_their_report_is_rewritten_from_them(tmp_path):
    from jobs.ablation import results
    kept = Results(results.ROOT / 'jobs' / 'ablation')
    by_arm = kept.by_arm(SETS['short'])
    assert {name: len(runs) for name, runs in by_arm.items()} == {name: 3 for name in SETS['short'].arms}
    evidence = {name: kept.by_arm(declared) for name, declared in SETS.items()}
    drawn = {path.name for path in kept.directory.glob('*.png')}
    assert report.compose(kept, evidence, drawn) == (kept.directory / 'README.md').read_text()
