"""What must agree between a checkpoint and the job that resumes from it."""


from lib.checkpoint import file, resume


def test_equal_jobs_have_no_differences_after_a_round_trip(tmp_path):
    job = {'seed': 0, 'betas': (10, 5.5), 'recipe': {'transition': 'continuous', 'eta_scale': 1 / 3}}
    file.write(tmp_path / 'a.npz', {}, {'job': job})
    assert resume.compare_jobs(file.read(tmp_path / 'a.npz')[1]['job'], job) == []


def test_differences_are_spelled_out():
    saved = {'seed': 0, 'recipe': {'transition': 'continuous', 'eta': 0.1}, 'gone': True}
    current = {'seed': 1, 'recipe': {'transition': 'printed', 'eta': 0.1}, 'new': None}
    assert resume.compare_jobs(saved, current) == [
        'seed: 0 in the checkpoint, 1 now',
        'recipe.transition: continuous in the checkpoint, printed now',
        'new: not given in the checkpoint, null now',
        'gone: true in the checkpoint, not given now',
    ]


def test_differences_are_named_by_all_that_they_are_part_of():
    assert resume.compare_jobs({'a': {'b': {'c': 1}}}, {'a': {'b': {'c': 2}}}) == [
        'a.b.c: 1 in the checkpoint, 2 now']
