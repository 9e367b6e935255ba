"""What a finished run tells in a few lines."""


def describe(plan, log):
    """Summary of a run from the rows of its log.

    Args:
        plan (lib.plan.Plan): The job.
        log (list of dict): Rows of ``log``, all of them.

    Returns:
        str: Accuracy, time, images per second and the shares of computation, communication and data.
    """
    spent = {'iteration': 0.0, 'allreduce': 0.0, 'data': 0.0}
    before = 0
    for row in log:
        for name in spent:
            spent[name] += row.get(f'{name}_time', 0.0) * (row['iteration'] - before)
        before = row['iteration']
    last, lines = log[-1], []
    accuracies = [row['validation/main/accuracy'] for row in log if 'validation/main/accuracy' in row]
    if accuracies:
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        lines.append(f'accuracy   {accuracies[-1]:.4f} at the end, {accuracies[best]:.4f} at best '
                     f'(validation {best + 1} of {len(accuracies)})')
    lines.append(f'time       {last["elapsed_time"]:.1f} s for {plan.iterations:,} iterations of '
                 f'{plan.total_batch:,} images, validation included')
    if spent['iteration']:
        share = {name: seconds / spent['iteration'] for name, seconds in spent.items()}
        lines.append(f'speed      {plan.iterations * plan.total_batch / spent["iteration"]:,.0f} images/s '
                     'while training')
        lines.append(f'iteration  {1 - share["allreduce"] - share["data"]:.0%} computation, '
                     f'{share["allreduce"]:.0%} communication, {share["data"]:.0%} waiting for data')
    return '\n'.join(lines)
