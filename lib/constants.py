"""Every constant of the two papers, once, with its source.

*A* is Akiba, Suzuki, Fukuda 2017, "Extremely Large Minibatch SGD: Training ResNet-50 on ImageNet in
15 Minutes"; *G* is Goyal et al. 2017, "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", whose
settings hold "unless otherwise specified" (A section 2); *fb* is fb.resnet.torch, which G refers to.
"""

# Length of the training, to which everything counted in epochs below refers.
EPOCHS = 90                                  # A section 1

# Linear scaling rule, eta_base = BASE_RATE * total_batch / BASE_BATCH.
BASE_RATE = 0.1                              # A A.2; G section 2.1
BASE_BATCH = 256                             # A A.2; G section 2.1

# RMSprop warm-up.
MU1 = 0.9                                    # A A.1, momentum
MU2 = 0.99                                   # A A.1, decay of the gradient's second moment
EPS = 1e-8                                   # A A.1
ETA_RMSPROP = 0.0003                         # A A.1
BETA_CENTER = 10                             # A A.1, epochs
BETA_PERIOD = 5                              # A A.1, epochs

# Learning rate schedules: (first epoch, factor of eta_base).
SLOW_START = ((0, 0.5), (40, 0.075), (70, 0.01), (85, 0.001))      # A A.2
GOYAL_STEPS = ((0, 1.0), (30, 0.1), (60, 0.01), (80, 0.001))       # G section 5.1; quoted in A A.2
GOYAL_WARMUP_EPOCHS = 5                      # G section 2.2
GOYAL_ETA_START = 0.1                        # G section 2.2: the rate of a minibatch of 256

# Minibatch per worker: gradients, and batch normalization's statistics.
BATCH = 32                                   # A section 4, A.2; G section 5.1

# Regularisation and initialization.
WEIGHT_DECAY = 1e-4                          # G section 5.1, not on batch normalization's gamma and beta
FC_STD = 0.01                                # G section 5.1
BN_DECAY = 0.9                               # G section 5.1, of the moving averages
BN_EPS = 1e-5                                # fb, G's framework default; not stated in either paper

# Augmentation.
CROP_AREA = (0.08, 1.0)                      # fb, share of the image's area
CROP_ASPECT = (3 / 4, 4 / 3)                 # fb, width / height
CROP_TRIES = 10                              # fb
IMAGE_MEAN = (0.485, 0.456, 0.406)           # fb, of RGB in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)            # fb
INSIZE = 224                                 # G section 5.1
VAL_SHORT_SIDE = 256                         # G section 5.1, for INSIZE; scales with the input's side

# The paper's own run, for plans and comparisons.
IMAGENET_TRAIN = 1281167                     # ILSVRC 2012
IMAGENET_VAL = 50000
IMAGENET_CLASSES = 1000
PAPER_WORKERS = 1024                         # A section 4, A.2
PAPER_SECONDS = 897.9                        # A section 4, validation included
PAPER_SECONDS_STD = 3.3
PAPER_ACCURACY = 0.7494
PAPER_ACCURACY_STD = 0.0009
PAPER_EFFICIENCY_GPU = 0.70                  # A section 4, against one GPU
PAPER_EFFICIENCY_NODE = 0.80                 # A section 4, against one node of eight

# fb's color jitter and lighting, which G's text does not mention (off by default).
JITTER_STRENGTH = 0.4                        # fb, brightness, contrast and saturation
LUMINANCE = (0.299, 0.587, 0.114)            # fb, of RGB
LIGHTING_STD = 0.1                           # fb
LIGHTING_EIGENVALUES = (0.2175, 0.0188, 0.0045)      # fb, of ImageNet's RGB covariance
LIGHTING_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009),  # fb, one row per channel, one column per eigenvalue
                         (-0.5808, -0.0045, -0.8140),
                         (-0.5836, -0.6948, 0.4203))

# The paper's cluster and model, for the cost model and reports.
PAPER_NODE_GPUS = 8                          # A section 3
PAPER_LINK_BITS = 56e9                       # per second, of the InfiniBand FDR (4x) that A section 3 names
PAPER_NODE_LINKS = 2                         # tech.preferred.jp, "MN-1: a GPU cluster behind 15-min ImageNet"
RESNET50_PARAMETERS = 25557032               # G's variant; tests/models counts them
RESNET50_STATISTICS = 53120                  # means and variances of its 53 batch normalizations

# A Table 1: team, hardware, software, minibatch, time, accuracy.
TABLE_1 = (
    ('He et al.', 'Tesla P100 × 8', 'Caffe', 256, '29 hr', 0.753),
    ('Goyal et al.', 'Tesla P100 × 256', 'Caffe2', 8192, '1 hr', 0.763),
    ('Codreanu et al.', 'KNL 7250 × 720', 'Intel Caffe', 11520, '62 min', 0.750),
    ('You et al.', 'Xeon 8160 × 1600', 'Intel Caffe', 16000, '31 min', 0.753),
    ('Akiba et al.', 'Tesla P100 × 1024', 'Chainer', 32768, '15 min', 0.749),
)
