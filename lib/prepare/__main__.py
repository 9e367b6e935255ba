"""The command ``python -m lib.prepare``."""

import argparse
import os
import signal
import sys

from lib import constants, errors
from lib.errors import EXIT_FINISHED, EXIT_USER_ERROR, UserError, printable, say
from lib.prepare.copying import prepare
from lib.prepare.image import QUALITY

EXIT_LEFT_OUT = 1

_MAX_SIDE = 65500  # of a JPEG file that libjpeg writes
_MAX_JOBS = 1024   # more than a machine has cores

_DESCRIPTION = """\
Makes a copy of ImageNet for training: short side 256, sound JPEG files only, in class folders, with
list files. Run it again to continue after an interruption: finished files are left as they are."""

_EPILOG = """\
SRC is a directory that holds any of these; nothing needs to be unpacked:
  train/<class>/*.JPEG       or ILSVRC2012_img_train.tar, or train/ with n01440764.tar and so on
  val/<class>/*.JPEG         or val/*.JPEG or ILSVRC2012_img_val.tar, with labels; validation/ is val/ too
  ILSVRC/Data/CLS-LOC/       with train and val: Kaggle's archive
  <class>/*.JPEG             or n01440764.tar and so on: a set that is not split; with a val, its training set

Labels of validation images in no class folder are looked for in SRC and its *devkit* folder, unless
--val-labels gives them:
  LOC_val_solution.csv       or any file of lines "image class"
  val_synsets.txt            one class per line, for images 1, 2, 3 and so on
  val.txt                    lines "image label" of Chainer or Caffe: sorted training classes from 0
  ILSVRC2012_devkit_t12.tar.gz
                             the development kit as distributed
  ILSVRC2012_validation_ground_truth.txt
                             from it: one ILSVRC id per line, with meta.mat or map_clsloc.txt (lines "class
                             id") beside it

DST then holds train/<class>/, val/<class>/, train.txt and val.txt (lines "path label", paths relative to DST,
labels by sorted class name of the training set) and prepare.json (the settings, and where the images came
from). A set that is not split becomes <class>/ and images.txt. Validation images of classes that are not
trained are not taken. DST goes on with the same images only, whatever their directory is called; what SRC has
not and DST has is refused.

Images whose short side is at most N are copied byte for byte, others resized (bicubic) and written as JPEG
of quality Q. CMYK, PNG and other formats and images that lie on their side become upright RGB or gray JPEG
files. Images that cannot be read, or only in part, are larger than 256 MiB, of none of the formats JPEG, PNG,
BMP, GIF, WebP, TIFF, or have a control character in their name, are left out. The report names the images
repaired in this run, and all that are left out.

Exit status: 0 all images prepared; 1 prepared, but some images left out; 2 bad arguments or data;
130 interrupted."""


def main(arguments=None):
    """Run the command; returns its exit status."""
    try:
        options = _parser().parse_args(arguments)
        left_out = prepare(**vars(options))
    except UserError as error:
        say(f'prepare: {printable(error)}')
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print('\nprepare: interrupted; run the same command again to continue', file=sys.stderr)
        return errors.EXIT_INTERRUPTED
    return EXIT_LEFT_OUT if left_out else EXIT_FINISHED


def _like_ctrl_c(number, frame):
    """What SIGTERM and SIGHUP do, also where Ctrl-C is ignored, as in the background."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(number, frame)


def _parser():
    parser = _Parser(prog='python -m lib.prepare', allow_abbrev=False, description=_DESCRIPTION,
                     epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='directory of ImageNet')
    parser.add_argument('destination', metavar='DST', help='directory for the copy, new or to be continued')
    parser.add_argument('--short-side', metavar='N', type=_whole_number(1, _MAX_SIDE),
                        default=constants.VAL_SHORT_SIDE,
                        help='largest short side in pixels (%(default)s)')
    parser.add_argument('--quality', metavar='Q', type=_whole_number(1, 100), default=QUALITY,
                        help='JPEG quality of resized images, 1 to 100 (%(default)s)')
    parser.add_argument('--jobs', metavar='J', type=_whole_number(1, _MAX_JOBS), default=_cores(),
                        help='processes (as many as cores: %(default)s)')
    parser.add_argument('--val-labels', metavar='PATH', help='labels of the validation images')
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message} (see --help)')


def _whole_number(low, high):
    def convert(text):
        # Python converts no text of thousands of digits, and a superscript is a digit but no number.
        value = int(text) if text.isdecimal() and len(text) < 20 else -1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {low} to {high}')
        return value
    return convert


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


if __name__ == '__main__':
    errors.outlast_streams()
    for ending in signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(ending) == signal.SIG_DFL:  # not where nohup has it ignored
            signal.signal(ending, _like_ctrl_c)
    sys.exit(main())
