"""Pseudo-random weights that depend on a variable's name and shape alone, as the reference vectors were computed with."""
import zlib
import numpy as np

FIRST_CONVOLUTIONS = ('conv1/weights', 'DeepLab/group_1/conv1/DW', 'ResNet/group_1/conv1/DW')


def rule(name, shape):
    "float32 array of a TensorFlow variable; `shape` as TensorFlow has it (convolutions [k, k, Cin, Cout])."
    z = np.random.RandomState(zlib.crc32(name.encode('ascii'))).randn(*shape)
    leaf, fan_in = name.rpartition('/')[2], float(np.prod(shape[:-1]))
    norm = 'LayerNorm' in name
    if leaf == 'gamma' and not norm:
        closing = 'branch2c' in name or 'block_3' in name           # the last one before a shortcut is added
        return ((0.3 if closing else 1.0) * (1 + 0.1 * z)).astype(np.float32)
    value = {
        'DW': lambda: z * np.sqrt(2 / fan_in) * (0.02 if name in FIRST_CONVOLUTIONS else 1),
        'kernel': lambda: z * np.sqrt(1.5 / fan_in),
        'biases': lambda: 0.2 * z, 'embedding': lambda: 0.7 * z, 'W_c': lambda: 0.5 * z, 'gamma': lambda: 1 + 0.3 * z,
        'beta': lambda: (0.3 if norm else 0.1) * z, 'mean': lambda: 0.1 * z, 'variance': lambda: 0.5 + np.abs(z),
    }
    same = {'weights': 'DW', 'bias': 'biases', 'W_ci': 'W_c', 'W_cf': 'W_c', 'W_co': 'W_c', 'moving_mean': 'mean', 'moving_variance': 'variance'}
    return value[same.get(leaf, leaf)]().astype(np.float32)
