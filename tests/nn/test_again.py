"""What is computed again for its gradient: the same numbers, and only what goes in is kept."""

import pytest
import torch

from molkern.nn.again import computed_again

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


def bent(x, y):
    return torch.tanh(x @ y).sigmoid()


def drawn(requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    tensors = torch.rand(5, 7, generator=generator), torch.rand(7, 3, generator=generator)
    return [t.requires_grad_(requires_grad) for t in tensors]


@pytest.mark.parametrize("autocast", [False, True])
def test_the_same_numbers(autocast):
    """In the precision of the first time, wherever the gradient is taken."""
    found = []
    for function in (bent, lambda *tensors: computed_again(bent, *tensors)):
        x, y = drawn()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(x, y)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, y])])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_some_are_constant():
    x, y = drawn()
    out = computed_again(bent, x, y.detach())
    (gradient,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(bent(x, y).sum(), x)
    assert torch.equal(gradient, expected)
    assert not computed_again(bent, *drawn(False)).requires_grad


def test_only_the_arguments_are_kept():
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    x, y = drawn()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        computed_again(bent, x, y)
    assert sorted(t.shape for t in kept) == sorted(t.shape for t in (x, y))


def test_no_second_derivatives():
    x, y = drawn()
    out = computed_again(bent, x, y)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
