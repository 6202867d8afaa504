import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.ops.delta import DeltaInputs, causal_conv, delta_chunks, delta_step, gated_delta, unit_length


def random_inputs(
    length: int, seed: int = 0, batch: int = 2, heads: int = 3, *, channels: bool = False
) -> DeltaInputs:
    """`channels`: a decay for each row of the state."""
    torch.manual_seed(seed)
    q, k = torch.randn(2, batch, heads, length, 4, dtype=torch.float64)
    v = torch.randn(batch, heads, length, 5, dtype=torch.float64)
    rows = (4,) if channels else ()
    decay = -torch.rand(batch, heads, length, *rows, dtype=torch.float64) * 2
    return DeltaInputs(q, k, v, decay, torch.rand(batch, heads, length, dtype=torch.float64))


def by_hand(inputs: DeltaInputs, state: torch.Tensor, segments=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence as the paper writes it, with explicit matrices, one head and token at a time."""
    out = torch.zeros_like(inputs.v)
    final = state.clone()
    for b in range(state.shape[0]):
        for h in range(state.shape[1]):
            s = state[b, h].clone()
            for t in range(inputs.v.shape[2]):
                q, k, v = (x[b, h, t] for x in inputs[:3])
                q, k = unit_length(q) * q.numel() ** -0.5, unit_length(k)
                alpha, beta = inputs.log_decay[b, h, t].exp(), inputs.beta[b, h, t]
                if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                    s = torch.zeros_like(s)
                # The decay comes first; as a number per row it does not commute with the correction.
                s = alpha.reshape(-1, 1) * s
                s = s - beta * torch.outer(k, k) @ s + beta * torch.outer(k, v)
                out[b, h, t] = s.T @ q
            final[b, h] = s
    return out, final


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100), st.booleans())
def test_chunks_compute_the_recurrence(length, size, seed, channels):
    inputs = random_inputs(length, seed, channels=channels)
    state = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    want, final = by_hand(inputs, state)
    q, k, *rest = inputs
    scaled = DeltaInputs(unit_length(q) * 0.5, unit_length(k), *rest)
    got, last = delta_chunks(scaled, state, size=size)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last, final, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [False, True])
def test_one_token_at_a_time_is_the_same(channels):
    inputs, state = random_inputs(7, channels=channels), torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    want, final = gated_delta(inputs)
    outs = []
    for t in range(7):
        piece = DeltaInputs(*(x[:, :, t : t + 1] for x in inputs))
        out, state = gated_delta(piece, state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=2), want)
    torch.testing.assert_close(state, final)


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 8), st.integers(0, 50), st.booleans()
)
def test_a_segment_starts_with_an_empty_state(lengths, size, seed, channels):
    total = sum(lengths)
    inputs = random_inputs(total, seed, batch=1, channels=channels)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    state = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    want, final = by_hand(inputs, state, segments)
    q, k, *rest = inputs
    scaled = DeltaInputs(unit_length(q) * 0.5, unit_length(k), *rest)
    got, last = delta_chunks(scaled, state, segments, size=size)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last, final, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [False, True])
def test_strong_decay_does_not_overflow(channels):
    inputs = random_inputs(200, channels=channels)
    strong = inputs._replace(log_decay=inputs.log_decay * 500)
    out, state = gated_delta(strong)
    assert out.isfinite().all() and state.isfinite().all()


def test_low_precision_inputs_are_computed_in_float32():
    inputs = random_inputs(20)
    low = DeltaInputs(*(x.bfloat16() for x in inputs))
    out, state = gated_delta(low)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    want, _ = gated_delta(DeltaInputs(*(x.double() for x in low)))
    torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("channels", [False, True])
def test_autocast_does_not_reach_the_recurrence(channels):
    inputs = DeltaInputs(*(x.float() for x in random_inputs(40, channels=channels)))
    want, _ = gated_delta(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, state = gated_delta(inputs)
    assert state.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_a_step_is_differentiable():
    inputs = DeltaInputs(*(x.requires_grad_() for x in random_inputs(1)))
    out, _ = delta_step(inputs, torch.randn(2, 3, 4, 5, dtype=torch.float64))
    assert all(g is not None for g in torch.autograd.grad(out.sum(), list(inputs), allow_unused=True))


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_the_convolution_is_causal_and_stays_in_its_segment(kernel):
    x, weight = torch.randn(2, 6, 3, dtype=torch.float64), torch.randn(3, kernel, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    got = causal_conv(x, weight, segments)
    for b in range(2):
        for t in range(6):
            want = torch.zeros(3, dtype=torch.float64)
            for back in range(kernel):
                if t - back >= 0 and segments[b, t] == segments[b, t - back]:
                    want += weight[:, kernel - 1 - back] * x[b, t - back]
            torch.testing.assert_close(got[b, t], want)
    torch.testing.assert_close(causal_conv(x, weight)[1], got[1])
