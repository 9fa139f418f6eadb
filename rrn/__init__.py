__version__ = "0.1.0"

# PyTorch's threads shall sleep while they wait for each other: spinning ones take the time of whatever else runs on
# the machine. It has to be said before PyTorch is loaded; whoever has set something else keeps it.
import os
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
del os
