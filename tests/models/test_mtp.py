"""Multi-token prediction layers against the formula of DeepSeek-V3, section 2.2."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_layers import randomise_
from tiny_published import DEEPSEEK
from torch.utils._python_dispatch import TorchDispatchMode

from moeworks import Decoder
from moeworks.config.count import count_parameters
from moeworks.families import from_hf
from moeworks.ops.cross_entropy import CHUNK_ROWS
from moeworks.ops.head import Head
from moeworks.ops.mtp import mtp_loss

CONFIG = replace(from_hf(DEEPSEEK), num_mtp_layers=2)
TOKENS = torch.randint(40, (2, 14), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Decoder:
    torch.manual_seed(0)
    return randomise_(Decoder(CONFIG).double(), std=0.3).eval()


def test_each_depth_joins_the_stream_with_the_next_token(model):
    output = model(TOKENS, ahead=True)
    hidden = output.hidden_BLD
    inputs, context = model._context(TOKENS[:, :13], None, None, None)
    for depth, layer in enumerate(model.mtp, 1):
        length = 14 - depth
        joined = torch.cat(
            [layer.embed_norm(model.embed(TOKENS[:, depth:])), layer.hidden_norm(hidden[:, :length])], dim=-1
        )
        inputs, context = model._context(TOKENS[:, :length], None, None, None)
        stream, *_ = layer.block(layer.proj(joined), inputs[0], context)
        hidden = layer.final_norm(stream)
        want = F.linear(hidden, model.lm_head.weight)
        assert want.shape == (2, length, 40)
        torch.testing.assert_close(output.ahead_BLV[depth - 1], want)


def test_nothing_ahead_unless_asked(model):
    plain = model(TOKENS)
    both = model(TOKENS, ahead=True)
    assert plain.ahead_BLV == ()
    assert len(both.routings) == len(plain.routings) + 2
    assert torch.equal(plain.logits_BLV, both.logits_BLV)


def test_a_depth_sees_its_own_token_and_none_later(model):
    changed = TOKENS.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 40
    before, after = model(TOKENS, ahead=True).ahead_BLV, model(changed, ahead=True).ahead_BLV
    for depth, (a, b) in enumerate(zip(before, after, strict=True), 1):
        torch.testing.assert_close(a[:, : 8 - depth], b[:, : 8 - depth])
        assert (a[:, 8 - depth :] - b[:, 8 - depth :]).abs().amax() > 1e-3


def test_count_of_the_extra_parameters(model):
    extra = sum(p.numel() for name, p in model.named_parameters() if name.startswith("mtp."))
    count = count_parameters(CONFIG)
    assert count.mtp == extra
    assert count.total + extra == sum(p.numel() for p in model.parameters())


def test_the_loss_counts_what_lies_in_its_document_and_is_no_padding():
    torch.manual_seed(0)
    targets = torch.randint(9, (2, 6))
    streams = [torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)]
    head = Head(torch.randn(9, 3, dtype=torch.float64), torch.randn(9, dtype=torch.float64), scale=0.7)
    ahead = [head.logits(stream) for stream in streams]
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [3] * 6])
    want = 0.0
    for depth, logits in enumerate(ahead, 1):
        for b in range(2):
            for i in range(6 - depth):
                if valid[b, i + depth] and documents[b, i] == documents[b, i + depth]:
                    want -= logits[b, i].log_softmax(-1)[targets[b, i + depth]].item()
    got = mtp_loss(streams, head, targets, valid, documents)
    assert got.item() == pytest.approx(want / 2)
    assert mtp_loss([], head, targets).item() == 0


def test_gradients_reach_the_model_through_the_extra_layers(model):
    output = model(TOKENS[:, :-1], ahead=True)
    mtp_loss(output.ahead_BLD, output.head, TOKENS[:, 1:]).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith(("mtp.", "layers.0.")))


class LargestLogits(TorchDispatchMode):
    """Rows of the largest tensor with the vocabulary as its last dimension."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(t, torch.Tensor) and t.dim() > 1 and t.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, t.numel() // VOCABULARY)
        return made


VOCABULARY = 8209


def test_the_loss_holds_the_logits_of_a_chunk_of_positions_and_never_of_all():
    streams = [torch.randn(4, 300 - depth, 8, requires_grad=True) for depth in (1, 2)]
    head = Head(torch.randn(VOCABULARY, 8, requires_grad=True))
    with LargestLogits() as largest:
        mtp_loss(streams, head, torch.randint(VOCABULARY, (4, 300))).backward()
    assert 0 < largest.rows <= CHUNK_ROWS


def test_mtp_layers_are_computed_again_in_the_backward_pass_under_activation_checkpointing(model):
    runs = []
    model.mtp[1].block.mlp.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        output = model(TOKENS[:, :-1], ahead=True)
        mtp_loss(output.ahead_BLD, output.head, TOKENS[:, 1:]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(runs) == 3
    for name, want in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], want, rtol=1e-12, atol=1e-12)
