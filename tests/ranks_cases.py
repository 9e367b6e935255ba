"""What the scripts of cases do that the fixture ``assert_on_ranks`` starts on several ranks.

A case is a function of a script, marked ``@ranks_cases.case``: that is the one place where it is listed.
"""

import ast
import pathlib
import sys
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent

_cases = []


def case(function):
    """Mark a function as a case."""
    _cases.append(function)
    return function


def names(script):
    """Names of the cases of ``script``, a path below the root; it is read, not imported, nor MPI with it."""
    tree = ast.parse((ROOT / script).read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)
            and any(ast.unparse(mark) == 'ranks_cases.case' for mark in node.decorator_list)]


def run():
    """Call each case on every rank; rank 0 prints the name of one that all have passed."""
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    for case in _cases:
        try:
            case()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            world.Abort(1)
        world.Barrier()
        if world.rank == 0:
            print(case.__name__, flush=True)
