"""What the commands of ``gpu.py`` print and leave behind: figures of each, and all of them as tables.

Each ``of_...`` gives a function of a command's output, or is one, that returns a dict of figures, with a
``line`` that says them; it may raise anything where the command failed.
"""

import csv
import itertools
import json
import re
import statistics

from jobs.tables import duration, markdown


def of_check(output):
    agree, differ = output.count('as on the CPU'), output.count('DIFFERENT FROM THE CPU')
    speed, = re.findall(r'(\d+) images/s', output)
    update, copy = (float(re.search(rf'{name}: (\d+) GB/s', output)[1])
                    for name in ('update', 'copy within the GPU'))
    notes = itertools.takewhile(lambda line: ' THE CPU' not in line.upper(), output.splitlines())
    return {'agree': agree, 'differ': differ, 'images_per_second': int(speed), 'update_GB_per_s': update,
            'copy_GB_per_s': copy, 'update_of_copy': update / copy, 'notes': list(notes),
            'line': f'{agree} checks as on the CPU, {differ} not; {speed} images/s; the update moves '
                    f'{update:.0f} GB/s, {update / copy:.2f} of a copy within the GPU'}


def of_tests(output):
    counts = {word: int(number) for number, word in re.findall(
        r'(\d+) (passed|failed|skipped|errors?)\b', output.strip().splitlines()[-1])}
    if not counts.get('passed'):
        raise ValueError('no test passed')
    return {**counts, 'line': ', '.join(f'{number} {word}' for word, number in counts.items())}


def of_weights(folder):
    def read(output):
        cases = json.loads((folder / 'weights.json').read_text())
        agree = [name for name, case in cases.items() if case.get('agrees')]
        return {'cases': cases, 'line': f'{len(agree)} of {len(cases)} trainings as on the CPU: '
                + ', '.join(f'{name} {case["difference"]:.1e} of {case["bound"]:.0e}' if 'difference' in case
                            else f'{name} FAILED' for name, case in cases.items())}
    return read


def of_scaling(folder):
    def read(output):
        with open(folder / 'scaling.csv', newline='') as file:
            row, = csv.DictReader(file)
        seconds = float(row['iteration_time'])
        rate = int(row['batch']) * int(row['workers']) / seconds
        return {'seconds': seconds, 'images_per_second': rate, 'options': row['options'],
                'line': f'{rate:,.0f} images/s, {1e3 * seconds:.1f} ms an iteration ('
                        f'{1e3 * float(row["iteration_time_q1"]):.1f}-'
                        f'{1e3 * float(row["iteration_time_q3"]):.1f})'}
    return read


def of_torch(batch):
    def read(output):
        found = json.loads(output.strip().splitlines()[-1])
        rates = {name: batch / median for name, (_, median, _) in found['quartiles'].items()}
        return {**found, 'images_per_second': rates, 'line': f'PyTorch {found["torch"]}, images/s: '
                + ', '.join(f'{name} {rate:,.0f}' for name, rate in rates.items())}
    return read


def of_run(folder):
    def read(output):
        from jobs import report  # not before the set-up: it needs Chainer
        run = report.read_run(folder)
        last, scores = run.log[-1], run.accuracies
        figures = {'epochs': last['epoch'], 'iterations': run.iteration, 'seconds': run.seconds,
                   'accuracy': scores[-1], 'best': max(scores), 'last_5': report.median_of_last(scores),
                   'images_per_second': statistics.median(row['images_per_sec'] for row in run.log)}
        return {**figures, 'line': f'{figures["epochs"]:.3g} epochs in {duration(run.seconds)}, accuracy '
                f'{scores[-1]:.2%}, {figures["images_per_second"]:,.0f} images/s'}
    return read


def tables(found):
    """All results as Markdown."""
    parts = ['# On one GPU', *found.get('check', {}).get('notes', []),
             markdown(['piece', 'outcome', 'seconds', ''], [
                 [name, piece['outcome'], f'{piece["wall_seconds"]:.0f}', piece['line'].replace('|', '/')]
                 for name, piece in found.items()])]
    cases = found.get('weights', {}).get('cases', {})
    if cases:
        parts += ['## Weights against the CPU', markdown(
            ['case', 'largest difference, of an array\'s largest element', 'at most', 'in', ''],
            [[name, f'{case["difference"]:.1e}', f'{case["bound"]:.0e}', case['where'],
              '' if case['agrees'] else 'DIFFERENT']
             if 'difference' in case else [name, '', '', '', 'FAILED'] for name, case in cases.items()])]
    for batch in sorted({int(name.split()[1]) for name in found if name.startswith('torch ')}):
        rows = against_torch(found, batch)
        if rows:
            parts += [f'## ResNet-50, {batch} images at a time: images/s, and in parts of PyTorch\'s', rows]
    runs = {name: piece for name, piece in found.items() if 'accuracy' in piece}
    if runs:
        parts += ['## Trainings', markdown(
            ['run', 'epochs', 'time', 'accuracy', 'best', 'median of the last 5', 'images/s'],
            [[name, f'{piece["epochs"]:.3g}', duration(piece['seconds']), *(
                f'{piece[key]:.2%}' for key in ('accuracy', 'best', 'last_5')),
              f'{piece["images_per_second"]:,.0f}'] for name, piece in runs.items()])]
    return '\n\n'.join(parts) + '\n'


def against_torch(found, batch):
    """Table of ours over PyTorch's, by ratios within a turn, for one size of batch; None without a turn."""
    rates = {tuple(name.split()): piece['images_per_second'] for name, piece in found.items()
             if piece['step'] == 'torch' and 'images_per_second' in piece}
    turns = {turn: rates['torch', size, turn] for _, size, turn in
             [key for key in rates if key[:2] == ('torch', str(batch))]}
    if not turns:
        return None
    candidates = list(next(iter(turns.values())))
    rows = [['PyTorch', '', *(f'{statistics.median(torch[name] for torch in turns.values()):,.0f}'
                              for name in candidates)]]
    for name in dict.fromkeys(key[1] for key in rates if key[0] == 'ours'):
        both = [(torch, rates['ours', name, str(batch), turn]) for turn, torch in turns.items()
                if ('ours', name, str(batch), turn) in rates]
        if both:
            rows.append([f'ours, {name}', f'{statistics.median(rate for _, rate in both):,.0f}', *(
                f'{statistics.median(rate / torch[other] for torch, rate in both):.2f}'
                for other in candidates)])
    return markdown(['', 'images/s', *candidates], rows)
