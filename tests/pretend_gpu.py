"""A GPU that is not there: tensors that say they are on 'cuda' and compute on the CPU, and a real GPU's errors.

PyTorch's FakeTensorMode knows shapes only, so what asks a tensor for its values (`tolist`, `unique`, boolean indices)
ends there. Here values are real. An operation whose tensors lie on two devices raises, except where PyTorch allows it:
numbers (tensors without dimensions) may stay on the CPU, and so may the indices of an indexing operation."""
import contextlib
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device('cuda', 0), torch.device('cpu')
MAY_MIX = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.set_.source_Tensor}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default,
            torch.ops.aten._unsafe_index_put.default}


class OnGPU(torch.Tensor):
    "A CPU tensor in disguise."
    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(cls, real.shape, strides=real.stride(),
                                                   storage_offset=real.storage_offset(),
                                                   dtype=real.dtype, device=GPU, requires_grad=False)

    def __init__(self, real): self.on_cpu = real

    def __repr__(self, **_): return f'OnGPU({self.on_cpu})'

    def tolist(self): return self.on_cpu.tolist()

    def numpy(self, **_): raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_, **__): return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return on_gpu(func, args, kwargs or {})


def real(x): return x.on_cpu if isinstance(x, OnGPU) else x


def is_gpu(device): return device is not None and torch.device(device).type == 'cuda'


def check_devices(func, tensors):
    "What a real GPU says to tensors of two devices."
    there = [t for t in tensors if isinstance(t, OnGPU)]
    here = [t for t in tensors if not isinstance(t, OnGPU) and t.ndim]
    if there and here and func not in MAY_MIX | INDEXING:
        raise RuntimeError(f'{func}: Expected all tensors to be on the same device')


def on_gpu(func, args, kwargs):
    "Carry an operation out on the CPU, and give its result the device that it would have."
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    check_devices(func, tensors)
    if func in INDEXING and not isinstance(args[0], OnGPU) and any(isinstance(t, OnGPU) for t in tensors):
        raise RuntimeError(f'{func}: indices should be on the device of the tensor that is indexed, or on the CPU')
    asked = kwargs.get('device')
    there = is_gpu(asked) if asked is not None else (isinstance(args[0], OnGPU) if func in MAY_MIX
                                                     | INDEXING else any(isinstance(t, OnGPU) for t in tensors))
    inner = {k: CPU if k == 'device' and v is not None else real(v) for k, v in kwargs.items() if k != 'pin_memory'}
    out = func(*tree_map(real, args), **tree_map(real, inner))
    # what is changed in place is returned as it came
    same = {id(real(t)): t for t in tensors}
    return tree_map(lambda t: same.get(id(t), OnGPU(t) if there else t) if isinstance(t, torch.Tensor) else t, out)


class PretendGPU(TorchDispatchMode):
    _mode_key = torch._C._TorchDispatchModeKey.FAKE          # PyTorch looks for no driver while such a mode is on
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return on_gpu(func, args, kwargs or {})


@contextlib.contextmanager
def pretend_gpu():
    "Within, 'cuda' is a device."
    # a guard that does nothing, where there is no driver
    torch._C._ensureCUDADeviceGuardSet()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    lifting = torch._C._only_lift_cpu_tensors()
    # `torch.tensor(..., device=)` makes a CPU tensor first
    torch._C._set_only_lift_cpu_tensors(True)
    # weights that move are new ones, of the other kind
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with PretendGPU(), torch.backends.cudnn.flags(enabled=False): yield          # no operations that only a GPU has
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        torch._C._set_only_lift_cpu_tensors(lifting)
