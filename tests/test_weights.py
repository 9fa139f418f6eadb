"""rrn.data.weights: heads of the released programs against arrays these programs computed, and checkpoint files made here."""
import copy
import struct
from pathlib import Path
import google_crc32c
import numpy as np
import pytest
import torch
from rrn.backbone import backbone_to_tf, build_backbone, DeepLabTF
from rrn.common.core import MissingPackage, RRNError
from rrn.data import tf_checkpoint
from rrn.fusion import l2_normalise
from rrn.image import coordinates
from rrn.loss import segmentation_loss
from rrn.optim import AdamTF, l2_penalty, polynomial_lr
from rrn.predict import Predictor
from rrn.text import Vocabulary
from rrn.data.weights import from_port, from_tf, network, port_name, read_checkpoint, to_tf, variable_shapes
from weight_rule import rule

HERE = Path(__file__).parent
SHARED = HERE.parents[1]/'shared'/'reference'
SOURCES = [f for f in (HERE/'vectors', SHARED) if f.is_dir()]


class Reference:
    "Arrays of one network of a vector file; those in tests/vectors are a part of those in ../shared/reference."
    dtype = torch.float32
    def __init__(self, folder, name, prefix=''):
        self.npz, self.prefix = np.load(folder/f'{name}.npz'), prefix

    def __contains__(self, key): return self.prefix + key in self.npz

    def __getitem__(self, key): return self.npz[self.prefix + key]

    def below(self, start):
        "The rest of the keys that begin with `start`."
        return [k.removeprefix(self.prefix + start) for k in self.npz.files if k.startswith(self.prefix + start)]

    def variables(self):
        "The network's variables; they follow a rule, so tests/vectors has their shapes only."
        return {n: self[f'var/{n}'] for n in self.below('var/')} or {n: rule(n, self[f'shape/{n}']) for n in self.below('shape/')}

    def features(self, sample):
        image = f"in/img{'AB'[sample % 2]}/"
        names = {'C5': 'fc1000_logits'} if f'{image}fc1000_logits' in self else {m: m for m in ('C3', 'C4', 'C5') if image + m in self}
        return {m: nchw(self[image + n]).to(self.dtype) for m, n in names.items()}

    def words(self, sample): return torch.from_numpy(self[f's{sample}/words']).long()[None]

    def mask(self, sample): return torch.from_numpy(self[f"in/img{'AB'[sample % 2]}/target_fine"])[..., 0].float()

    def check(self, key, got, atol=1e-5, relative=False, axis=-1):
        "Compare with the array `key`, of which tests/vectors may have every 16th channel (along `axis`)."
        got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got)
        if key not in self:
            if f'{key}/every16' not in self: return 0
            key, got = f'{key}/every16', got.take(range(0, got.shape[axis], 16), axis)
        want = self[key]
        np.testing.assert_allclose(got, want, rtol=0, atol=atol * (np.abs(want).max() if relative else 1), err_msg=key)
        return 1


def samples(name, prefix):
    "Every (folder, name, prefix, sample) that there is."
    return [pytest.param(f, name, prefix, i, id=f'{f.name}-{name}-{prefix}s{i}') for f in SOURCES for i in range(9)
            if f'{prefix}s{i}/words' in np.load(f/f'{name}.npz')]


def networks(*names):
    "Every (folder, name, prefix) of these."
    return [pytest.param(f, name, prefix, id=f'{f.name}-{name}-{prefix}') for f in SOURCES for name, prefix in names]


def nchw(a): return torch.from_numpy(np.moveaxis(a, -1, 1).copy())


def nhwc(x): return np.moveaxis(x.detach().numpy(), 1, -1)


def conv_weights(head): return [m.weight for m in head.modules() if isinstance(m, torch.nn.Conv2d)]


def losses(head, ref, sample, resolution):
    "The program's two losses and their sum."
    upsampled = dict(resolution=resolution, upsample='logits', reduction='sum', mapping='tf')
    cls = segmentation_loss(head(ref.features(sample), ref.words(sample)), ref.mask(sample), **upsampled)
    reg = l2_penalty(conv_weights(head), 5e-4)
    return dict(cls_loss=cls, reg_loss=reg, cost=cls + reg)


def check_losses(head, ref, sample, resolution):
    for key, value in losses(head, ref, sample, resolution).items():
        rtol = 3e-6 if key == 'cls_loss' else 3e-4                       # TensorFlow adds up squares in 32 bits
        np.testing.assert_allclose(value.detach(), ref[f's{sample}/{key}'], rtol=rtol)


def check_output(head, ref, sample):
    "Logits at both resolutions and probabilities."
    size = ref[f's{sample}/up'].shape[1:3]
    with torch.no_grad(): pred, up = (head(ref.features(sample), ref.words(sample), size=s) for s in (None, size))
    for key, value in dict(pred=pred, up=up, sigm=up.sigmoid()).items(): assert ref.check(f's{sample}/{key}', nhwc(value), 2e-6)


def in_tf_names(head, values):
    "{TF variable: array} of what `values(parameter)` gives for each trained parameter."
    copied = copy.deepcopy(head)
    for q, p in zip(copied.parameters(), head.parameters()):
        if p.requires_grad: q.data = values(p)
    return to_tf(copied)


def check_gradients(head, ref, sample, resolution, features):
    "d cost / d variable and d cost / d feature; `features` maps maps to keys."
    maps = {m: f.requires_grad_() for m, f in ref.features(sample).items()}
    head.zero_grad()
    upsampled = dict(resolution=resolution, upsample='logits', reduction='sum', mapping='tf')
    (segmentation_loss(head(maps, ref.words(sample)), ref.mask(sample), **upsampled) + l2_penalty(conv_weights(head), 5e-4)).backward()
    grads = in_tf_names(head, lambda p: p.grad)
    assert sum(ref.check(f's{sample}/grad/{n}', g, relative=True, axis=-2) for n, g in grads.items()) == len(grads)
    for m, key in features.items(): assert ref.check(key, nhwc(maps[m].grad), relative=True)


def train(head, ref, sample, steps, lr, decay_steps, resolution):
    "The program's training: (optimiser, costs before the steps, rates, weights after each step)."
    biases = [m.bias for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    others = [p for p in head.parameters() if p.requires_grad and not any(p is b for b in biases)]
    optimiser = AdamTF([dict(params=others), dict(params=biases, grad_scale=2.)])
    costs, rates, after = [], [], []
    for step in range(steps):
        rates.append(polynomial_lr(step, lr, 1e-5, decay_steps))
        for group in optimiser.param_groups: group['lr'] = rates[-1]
        found = losses(head, ref, sample, resolution)
        optimiser.zero_grad(); found['cost'].backward(); optimiser.step()
        costs.append({k: v.item() for k, v in found.items()}); after.append(to_tf(head))
    return optimiser, costs, rates, after


def check_weights(ref, run, step, got, atol=1e-5):
    "Weights after a step: the largest difference, and the mean of each variable's a tenth of it."
    names = [n.removesuffix('/every16') for n in ref.below(f'{run}/step{step}/')]
    assert set(names) == set(got)
    for n in names:
        key, a = f'{run}/step{step}/{n}', got[n]
        if key not in ref: key, a = f'{key}/every16', a[..., ::16, :]
        off = np.abs(a - ref[key])
        assert off.max() <= atol and off.mean() < atol / 10, (key, off.max(), off.mean())


# ---------------------------------------------------------------- RRN and D-LSTM, stage by stage

ALL = networks(('rrn_head', ''), ('dlstm_head', 'deeplab/'), ('dlstm_head', 'resnet/'), ('rmi_head', 'deeplab/'), ('rmi_head', 'resnet/'))


@pytest.mark.parametrize('folder,name,prefix', ALL)
def test_round_trip_is_bit_for_bit(folder, name, prefix):
    variables = Reference(folder, name, prefix).variables()
    back = to_tf(from_tf(variables))
    assert back.keys() == variables.keys() and all(back[n].tobytes() == np.ascontiguousarray(v).tobytes() for n, v in variables.items())


@pytest.mark.parametrize('name,prefix', [('rrn_head', ''), ('dlstm_head', 'deeplab/'), ('rmi_head', 'resnet/')])
def test_shared_weights_follow_the_rule(name, prefix):
    if SHARED not in SOURCES: pytest.skip('../shared/reference is not here')
    assert all(np.array_equal(v, rule(n, v.shape)) for n, v in Reference(SHARED, name, prefix).variables().items())


def lstm_steps(encoder, words):
    "Outputs (T, D), zero where a word is skipped, and states concat(c, h) (T, 2D) after every position, one word at a time."
    state, outputs, states = None, [], []
    zero = torch.zeros(encoder.lstm.hidden_size)
    for w in words[0]:
        y = zero
        if w:
            y, state = encoder.lstm(encoder.embedding(w.view(1, 1)), state)
            y = y[0, 0]
        h, c = (s[0, 0] for s in state) if state else (zero, zero)
        outputs.append(y); states.append(torch.cat([c, h]))
    return torch.stack(outputs), torch.stack(states)


@pytest.mark.parametrize('folder,name,prefix,sample', samples('rrn_head', '') + samples('dlstm_head', 'deeplab/') + samples('dlstm_head', 'resnet/'))
def test_stages(folder, name, prefix, sample):
    ref = Reference(folder, name, prefix)
    head, f, words, s = from_tf(ref.variables()), ref.features(sample), ref.words(sample), f's{sample}/'
    rrn, checked = name == 'rrn_head', 0
    with torch.no_grad():
        outputs, states = lstm_steps(head.encoder, words)
        language, mlp0 = head.encoder(words), head.fusion.project(f['C5'])
        visual, lang, where = l2_normalise(mlp0), l2_normalise(language), coordinates(*mlp0.shape[-2:])[None]
        pre = head.fusion.image_part(f['C5']) + head.fusion.sentence_part(language)
        q = head.localise(f, words)
        stages = {'embedded_seq': head.encoder.embedding(words)[0, :, None], 'lstm_out_steps': outputs[None], 'lstm_state_steps': states[None],
                  'lang_l2': lang[:, None, None], 'mlp0': nhwc(mlp0), 'conv0': nhwc(mlp0), 'visual_l2': nhwc(visual),
                  'feat_all': nhwc(torch.cat([visual, lang[..., None, None].expand(-1, -1, *where.shape[-2:]), where], 1)),
                  'fusion_pre': nhwc(pre), 'conv1': nhwc(pre), 'fusion': nhwc(q), 'mlp_relu': nhwc(q)}
        if rrn:
            laterals = head.refine.inputs(f, q.shape[-2:])
            h, c = head.refine.updates[0].run(torch.stack([q, *laterals], 1))
            torch.testing.assert_close(torch.stack(head.states(f, words)[1:], 1), h, atol=1e-6, rtol=0)
            stages |= {'c5_lateral_pre': nhwc(head.refine.laterals[0](f['C5'])), **{f'c{n}_lateral': nhwc(x) for n, x in zip('543', laterals)},
                       'convlstm_outputs': np.moveaxis(h.numpy(), 2, -1), 'convlstm_final_h': nhwc(h[:, -1]), 'convlstm_final_c': nhwc(c[:, -1])}
            assert ref.check('spatial', nhwc(where), 1e-6)
    for key, value in stages.items(): checked += ref.check(s + key, value)
    assert checked == (16 if rrn else 8 if prefix == 'deeplab/' else 6)
    check_output(head, ref, sample)
    if prefix != 'resnet/': check_losses(head, ref, sample, 'image' if rrn else 'feature')


@pytest.mark.parametrize('folder,name,prefix', networks(('rrn_head', '')))
@pytest.mark.processor
def test_rrn_gradients(folder, name, prefix):
    ref = Reference(folder, name)
    check_gradients(from_tf(ref.variables()), ref, 1, 'image', {m: f's1/grad_feat/{m}' for m in ('C3', 'C4', 'C5')})
    up = torch.from_numpy(ref['s1/up'])[..., 0].requires_grad_()
    torch.nn.functional.binary_cross_entropy_with_logits(up, ref.mask(1), reduction='sum').backward()
    ref.check('s1/grad_up', up.grad[..., None], 1e-6)


@pytest.mark.parametrize('folder,name,prefix', networks(('dlstm_head', 'deeplab/')))
def test_dlstm_gradients(folder, name, prefix):
    ref = Reference(folder, name, prefix)
    check_gradients(from_tf(ref.variables()), ref, 1, 'feature', {'C5': 's1/grad_feat'})


@pytest.mark.parametrize('run,lr,decay,steps,kept', [('train_default', 2.5e-4, 800_000, 3, (1, 3)), ('train_fastlr', .01, 4, 6, (3, 6))])
@pytest.mark.parametrize('folder,name,prefix', networks(('rrn_head', '')))
@pytest.mark.processor
def test_rrn_training(folder, name, prefix, run, lr, decay, steps, kept):
    "In 64 bits: six steps at a high rate amplify what 32 bits round, by another amount on each processor."
    ref = Reference(folder, name)
    ref.dtype = torch.float64
    head = from_tf(ref.variables()).double()
    optimiser, costs, rates, after = train(head, ref, 1, steps, lr, decay, 'image')
    np.testing.assert_allclose(rates, ref[f'{run}/lr_before_step'], rtol=1e-5)
    for key in ('cls_loss', 'cost'): np.testing.assert_allclose([c[key] for c in costs], ref[f'{run}/{key}_before_step'], rtol=1e-5)
    present = [step for step in kept if ref.below(f'{run}/step{step}/')]
    assert steps in present and ref[f'{run}/global_step_after'] == steps
    for step in present: check_weights(ref, run, step, after[step - 1])
    for slot in ('m', 'v'):
        got = in_tf_names(head, lambda p: optimiser.state[p][slot])
        for n in ref.below(f'{run}/adam_{slot}/'):                       # TensorFlow has 1 - 0.999 in 32 bits, which is 1.3e-5 off
            assert ref.check(f'{run}/adam_{slot}/{n}', got[n], relative=True, atol=2e-5)
    with torch.no_grad(): assert ref.check(f'{run}/up_after', nhwc(head(ref.features(1), ref.words(1), size=(40, 40))), 2e-5)


@pytest.mark.parametrize('folder,name,prefix', networks(('dlstm_head', 'deeplab/'), ('rmi_head', 'deeplab/')))
def test_training_of_the_other_systems(folder, name, prefix):
    ref = Reference(folder, name, prefix)
    _, costs, rates, after = train(from_tf(ref.variables()), ref, 1, 3, 2.5e-4, 750_000, 'feature')
    np.testing.assert_allclose(rates, ref['train/lr_before_step'], rtol=1e-6)
    np.testing.assert_allclose([c['cost'] for c in costs], ref['train/cost_before_step'], rtol=1e-5)
    check_weights(ref, 'train', 3, after[2])


def test_the_released_preset_trains_like_this():
    "rrn.train doubles the same gradients and decays the same weights as `train` above."
    from rrn.train import convolution_weights, make_optimiser
    for name, prefix in (('rrn_head', ''), ('rmi_head', 'deeplab/')):
        head = from_tf(Reference(HERE/'vectors', name, prefix).variables())
        doubled = [p for g in make_optimiser(head).param_groups if g['grad_scale'] == 2 for p in g['params']]
        biases = [m.bias for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
        assert {id(p) for p in doubled} == {id(b) for b in biases} and {id(w) for w in convolution_weights(head)} == {id(w) for w in conv_weights(head)}


@pytest.mark.parametrize('folder,name,prefix', networks(('dlstm_head', 'resnet/'), ('rmi_head', 'resnet/')))
def test_class_scores(folder, name, prefix):
    "The trained layer of class scores is part of the checkpoint and of the L2 term."
    ref = Reference(folder, name, prefix)
    layer = {n: rule(n, shape) for n, shape in (('ResNet/fc1000/DW', (1, 1, 2048, 1000)), ('ResNet/fc1000/biases', (1000,)))}
    head = from_tf(ref.variables() | layer)
    check_losses(head, ref, 1, 'feature')
    back = to_tf(head)
    assert all(np.array_equal(back[n], v) for n, v in layer.items())
    scores = head.fc1000(torch.randn(1, 2048, 4, 4))
    assert torch.equal(head({'C5': scores}, ref.words(1)), from_tf(ref.variables())({'C5': scores}, ref.words(1)))


@pytest.mark.parametrize('name,prefix', [('rrn_head', ''), ('dlstm_head', 'deeplab/'), ('rmi_head', 'deeplab/')])
def test_sentences_of_a_batch_do_not_mix(name, prefix):
    ref = Reference(HERE/'vectors', name, prefix)
    head, f = from_tf(ref.variables()), ref.features(1)
    f = {m: torch.cat([x, x.flip(3) * .7]) for m, x in f.items()}
    words = torch.stack([torch.from_numpy(w) for w in np.random.default_rng(0).integers(0, 50, (7, 20))])
    words[2, :15], words[3], words[4, 5:] = 0, 0, 0
    image_of = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with torch.no_grad():
        together = head(f, words, image_of, size=(40, 40))
        for i, image in enumerate(image_of):
            alone = head({m: x[image][None] for m, x in f.items()}, words[i:i+1], size=(40, 40))
            torch.testing.assert_close(together[i:i+1], alone, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- maps that are not square

def rrn_in_numpy(v, f, words):
    "RRN's logits straight from the variables, NHWC, 64 bits, nothing shared with rrn: a single image and sentence."
    v = {n.removeprefix('text_objseg/'): np.float64(a) for n, a in v.items()}
    sigmoid, unit = lambda x: 1 / (1 + np.exp(-x)), lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True))
    conv = lambda x, n: x @ v[f'{n}/DW'][0, 0] + v[f'{n}/biases']
    cell = 'RNN/multi_rnn_cell/cell_0/basic_lstm_cell/'
    c = h = np.zeros(v[f'{cell}bias'].size // 4)
    for w in words:
        if w == 0: continue
        i, j, g, o = np.split(np.concatenate([v['embedding'][w], h]) @ v[f'{cell}kernel'] + v[f'{cell}bias'], 4)
        c = c * sigmoid(g + 1) + sigmoid(i) * np.tanh(j); h = np.tanh(c) * sigmoid(o)
    H, W = f['C5'].shape[:2]
    y, x = np.mgrid[:H, :W]
    where = np.stack([2*x/W - 1, 2*y/H - 1, 2*(x + 1)/W - 1, 2*(y + 1)/H - 1, (2*x + 1)/W - 1, (2*y + 1)/H - 1, 0*x + 1/W, 0*y + 1/H], -1)
    q = np.maximum(conv(np.concatenate([unit(conv(f['C5'], 'mlp0')), np.broadcast_to(unit(h), (H, W, h.size)), where], -1), 'fusion'), 0)
    inputs = [q] + [np.maximum(conv(f[f'C{n}'], f'c{n}_lateral'), 0) for n in (5, 4, 3)]
    p, c, h = 'rnn/conv_lstm_cell/', np.zeros_like(q), np.zeros_like(q)
    norm = lambda x, n: (x - x.mean()) / x.std() * v[f'{p}LayerNorm{n}/gamma'] + v[f'{p}LayerNorm{n}/beta']
    for x in inputs:
        j, i, g, o = np.split(np.concatenate([x, h], -1) @ v[f'{p}kernel'][0, 0], 4, -1)
        i, g = i + v[f'{p}W_ci'] * c, g + v[f'{p}W_cf'] * c
        c = c * sigmoid(norm(g, '_2') + 1) + sigmoid(norm(i, '_1')) * np.tanh(norm(j, ''))
        o, c = norm(o + v[f'{p}W_co'] * c, '_3'), norm(c, '_4')
        h = sigmoid(o) * np.tanh(c)
    padded = np.pad(h, ((1, 1), (1, 1), (0, 0)))
    return sum(padded[a:a + H, b:b + W] @ v['score/DW'][a, b, :, 0] for a in range(3) for b in range(3)) + v['score/biases']


@pytest.mark.parametrize('h,w', [(4, 7), (6, 3), (1, 5)])
def test_maps_of_any_shape(h, w):
    sizes = dict(V=50, E=10, D_S=12, D_I=14, D_Q=6, C5=20, C4=11, C3=9, s=3, k=1, h=h, w=w)
    number = lambda d: eval(d, {}, sizes)
    variables = {f'text_objseg/{n}': rule(f'text_objseg/{n}', [number(d) for d in s.split()]) for n, s in variable_shapes('rrn').items()}
    rng = np.random.default_rng(1)
    f = {m: rng.normal(size=(h, w, sizes[m])).astype(np.float32) for m in ('C3', 'C4', 'C5')}
    words = [0, 0, 7, 0, 49, 3]
    with torch.no_grad(): got = from_tf(variables)({m: nchw(x[None]) for m, x in f.items()}, torch.tensor([words]))
    np.testing.assert_allclose(got[0, 0], rrn_in_numpy(variables, f, words), rtol=0, atol=5e-6)


# ---------------------------------------------------------------- the CNN with it

@pytest.fixture(scope='module')
def cnn(): return DeepLabTF()


def test_a_whole_network(cnn):
    head = Reference(HERE/'vectors', 'rrn_head').variables()
    both = {f'net/{n}:0': v for n, v in (head | backbone_to_tf(cnn)).items()} | {'net/fc1_voc12_c0/weights:0': np.zeros(3), 'net/lr': np.float32(1)}
    images, words = torch.rand(2, 3, 40, 40) * 255, torch.tensor([[0, 3, 9], [0, 0, 4], [1, 1, 1]])
    image_of = torch.tensor([0, 1, 1])
    with torch.no_grad(): maps = cnn(images)
    alone, model = from_tf(head), network(both)
    want = alone(maps, words, image_of, size=(40, 40))
    assert torch.equal(model(images, words, image_of, size=(40, 40)), want) and not model.training
    vocabulary = Vocabulary(('<pad>', '<go>', '<eos>', '<unk>', *(f'w{i}' for i in range(46))))
    mask, probability = Predictor(model, vocabulary).set_image(np.zeros((30, 55, 3), np.uint8)).predict('w3 beside w7')
    assert mask.shape == probability.shape == (30, 55) and 0 < probability.min() < probability.max() < 1
    with_cnn = from_tf(both)
    assert torch.equal(with_cnn(maps, words, image_of, size=(40, 40)), want) and alone.backbone is None
    assert all(torch.equal(a, b) for a, b in zip(with_cnn.backbone(images).values(), maps.values()))
    assert not any(p.requires_grad for p in with_cnn.backbone.parameters()) and not any(m.training for m in with_cnn.train().backbone.modules())
    for module in (model, with_cnn):
        back = to_tf(module)
        assert back.keys() == (head | backbone_to_tf(cnn)).keys() and all(np.array_equal(back[n], both[f'net/{n}:0']) for n in back)


def test_everything_wrong_is_one_error(cnn):
    variables = Reference(HERE/'vectors', 'rrn_head').variables() | backbone_to_tf(cnn)
    del variables['res3b1_branch2a/weights'], variables['text_objseg/score/biases']
    variables |= {'text_objseg/fusion/DW': variables['text_objseg/fusion/DW'][:, :, 1:], 'text_objseg/more': np.zeros(2)}
    with pytest.raises(RRNError) as e: from_tf(variables)
    for part in ('missing: text_objseg/score/biases', 'unknown: text_objseg/more', 'fusion/DW [1, 1, 59, 16] instead of [1, 1, 60, 16]',
                 'missing: res3b1_branch2a/weights'): assert part in str(e.value)


@pytest.mark.parametrize('name,prefix', [('rrn_head', ''), ('dlstm_head', 'deeplab/'), ('rmi_head', 'deeplab/')])
def test_each_variable_is_missed_and_measured(name, prefix):
    variables = Reference(HERE/'vectors', name, prefix).variables()
    for n, v in variables.items():
        with pytest.raises(RRNError, match=f'missing: {n}'): from_tf({m: w for m, w in variables.items() if m != n})
        for wrong in (v[None], np.zeros(())):
            with pytest.raises(RRNError) as e: from_tf(variables | {n: wrong})
            assert f'of another shape: {n} {list(wrong.shape)} instead of [' in str(e.value)
            assert str(e.value).count('instead of') == 1 and 'missing' not in str(e.value)           # no other is blamed
    for junk in (np.array('text'), np.array([None])):
        with pytest.raises(RRNError): from_tf(variables | {n: junk})
    with pytest.raises(RRNError, match='None of the 0'): from_tf({})


# ---------------------------------------------------------------- files

def number(n):
    "A varint."
    out = bytearray()
    while n > 127: out.append(n & 127 | 128); n >>= 7
    return bytes(out + bytes([n]))


def field(n, value):
    "A field of a message."
    return number(n << 3) + number(value) if isinstance(value, int) else number(n << 3 | 2) + number(len(value)) + value


def shape_message(shape): return b''.join(field(2, field(1, n % 2**64)) for n in shape)


def masked(data):
    crc = google_crc32c.value(data)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def snap(data):
    "Packed as literals, with a run of zeros as a copy."
    head, zeros, tail = data.partition(bytes(60))
    literal = lambda b: b''.join(bytes([60 << 2, len(b[i:i+256]) - 1]) + b[i:i+256] for i in range(0, len(b), 256))
    run = bytes([0, 0, 58 << 2 | 2, 1, 0]) if zeros else b''                  # one zero, and 59 more from it
    return number(len(data)) + literal(head) + run + literal(tail)


def make_table(records, packed=False, per_block=3):
    "A table of (key, value) pairs as TensorFlow writes it."
    file, handles = b'', []
    def add(pairs):
        nonlocal file
        content, last = b'', b''
        for key, value in pairs:
            shared = next((i for i, (a, b) in enumerate(zip(last, key)) if a != b), min(len(last), len(key)))
            content += number(shared) + number(len(key) - shared) + number(len(value)) + key[shared:] + value
            last = key
        content += struct.pack('<II', 0, 1)
        body = (snap(content) if packed else content) + bytes([packed])
        handle = number(len(file)) + number(len(body) - 1)
        file += body + masked(body)
        return handle
    for i in range(0, len(records), per_block): handles.append((records[i:i + per_block][-1][0] + b'~', add(records[i:i + per_block])))
    meta, index = add([]), add(handles)
    return file + (meta + index).ljust(40, b'\0') + struct.pack('<Q', 0xDB4775248B80FB57)


KINDS = {'float32': 1, 'float64': 2, 'int32': 3, 'int64': 9, 'bool': 10, 'float16': 19}


def write_v2(prefix, variables, packed=False, shards=1, change=None):
    "A version 2 checkpoint; `change` edits the entries {key: bytes} before they are written."
    data, entries = [b''] * shards, {b'': field(1, shards) + field(3, field(1, 1))}
    for k, (name, v) in enumerate(sorted(variables.items())):
        raw, i = v.tobytes(), k % shards
        entries[name.encode()] = (field(1, KINDS[v.dtype.name]) + field(2, shape_message(v.shape)) + (field(3, i) if i else b'') + field(4, len(data[i]))
                                  + field(5, len(raw)) + number(6 << 3 | 5) + masked(raw))
        data[i] += raw
    entries[b'~graph'] = field(1, 7) + field(2, b'') + field(5, 3)            # a string, which is passed over
    if change: change(entries)
    Path(f'{prefix}.index').write_bytes(make_table(sorted(entries.items()), packed))
    for i, d in enumerate(data): Path(f'{prefix}.data-{i:05d}-of-{shards:05d}').write_bytes(d)


def tensor(v):
    "The numbers of an array as a TensorProto."
    if v.dtype == np.float32: return field(5, v.tobytes())
    if v.dtype == np.float64: return field(6, v.tobytes())
    if v.dtype == np.float16: return field(13, b''.join(number(int(n)) for n in v.ravel().view(np.uint16)))
    return field({'int32': 7, 'int64': 10, 'bool': 11}[v.dtype.name], b''.join(number(int(n) % 2**64) for n in v.ravel()))


def write_v1(path, variables, packed=False, halves=(), change=None):
    "A version 1 checkpoint; arrays named in `halves` are saved in two slices of their first dimension."
    meta, records = b'', []
    for name, v in sorted(variables.items()):
        whole = field(1, b'') * v.ndim
        half = v.shape[0] // 2 if name in halves else 0
        rows = lambda a, b: (field(1, field(1, a) + field(2, b - a)) + field(1, b'') * (v.ndim - 1), v[a:b])
        parts = [rows(0, half), rows(half, len(v))] if half else [(whole, v)]
        named = field(1, name.encode())
        meta += field(1, named + field(2, shape_message(v.shape)) + field(3, KINDS[v.dtype.name]) + b''.join(field(4, w) for w, _ in parts))
        for i, (where, a) in enumerate(parts):
            records.append((b'\0' + name.encode() + bytes([i]), field(2, named + field(2, where) + field(3, tensor(a)))))
    records = [(b'', field(1, meta + field(2, field(1, 1)))), *records]
    if change: records = change(records)
    path.write_bytes(make_table(records, packed, per_block=2))


@pytest.fixture
def variables():
    "Small variables of every kind."
    rng = np.random.default_rng(3)
    sizes = {'text_objseg/a/DW': (1, 1, 3, 5), 'text_objseg/a/biases': (5,), 'text_objseg/b/DW': (3, 2)}
    floats = {n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    return floats | {'global_step': np.int64(-7), 'half': np.float16([1.5, -2]), 'double': rng.normal(size=3), 'flag': np.array([True, False]),
                     'int': np.int32([[-1, 2]]), 'zeros': np.zeros((4, 30), np.float32), 'none': np.zeros((0, 3), np.float32)}


def same(a, b): return a.keys() == b.keys() and all(np.array_equal(a[n], v) and a[n].dtype == v.dtype for n, v in b.items())


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('shards', [1, 3])
def test_version_2(tmp_path, variables, packed, shards):
    write_v2(tmp_path/'model.ckpt-7', variables, packed, shards)
    endings = ['', '.index', f'.data-00000-of-{shards:05d}', '.meta']
    assert all(same(read_checkpoint(f"{tmp_path/'model.ckpt-7'}{end}"), variables) for end in endings)


@pytest.mark.parametrize('packed', [False, True])
def test_version_1(tmp_path, variables, packed):
    for halves in ((), ('text_objseg/b/DW', 'zeros')):
        write_v1(tmp_path/'iter_7.tfmodel', variables, packed, halves)
        assert same(read_checkpoint(tmp_path/'iter_7.tfmodel'), variables)


@pytest.mark.parametrize('version', [1, 2])
def test_a_released_head_from_a_file(tmp_path, version):
    ref = Reference(HERE/'vectors', 'rrn_head')
    named = ref.variables()
    named |= {f'{n}/Adam': v for n, v in named.items()} | {'global_step': np.int64(700_000), 'text_objseg/beta1_power': np.float32(0)}
    (write_v1 if version == 1 else write_v2)(tmp_path/'model', named)
    check_output(from_tf(read_checkpoint(tmp_path/'model')), ref, 1)


@pytest.mark.parametrize('version', [1, 2])
def test_no_damage_goes_unnoticed(tmp_path, version):
    "Cut anywhere or with any byte changed, a file reads as before (unused bytes) or not at all."
    variables = {'a/DW': np.float32([[1, 2]]), 'a/biases': np.float32([3]), 'b': np.int64([5])}
    (write_v1 if version == 1 else write_v2)(tmp_path/'m', variables)
    files = [tmp_path/'m'] if version == 1 else [tmp_path/'m.index', tmp_path/'m.data-00000-of-00001']
    refused = 0
    for file in files:
        good = file.read_bytes()
        for i in range(len(good)):
            for bad in (good[:i], good[:i] + bytes([good[i] ^ 0x41]) + good[i + 1:]):
                file.write_bytes(bad)
                try: assert same(read_checkpoint(tmp_path/'m'), variables)
                except RRNError: refused += 1
        assert refused > 1.7 * len(good)
        file.write_bytes(good)
    assert same(read_checkpoint(tmp_path/'m'), variables)


def entry(dtype=1, shape=(2,), offset=0, size=8, shard=0, more=b'', crc=None):
    crc = crc or number(6 << 3 | 5) + masked(np.float32([1, 2]).tobytes())
    return field(1, dtype) + field(2, shape_message(shape)) + field(3, shard) + field(4, offset) + field(5, size) + crc + more


ENTRIES = [
    *[entry(offset=1), entry(offset=2**64 - 8), entry(size=2**40), entry(size=2**63), entry(shard=1), entry(shard=2**40)],
    *[entry(shape=s) for s in ((3,), (2**40, 2**40), (-2,), (-1, -2), (1,) * 40 + (2,))],
    *[entry(dtype=d) for d in (99, 20, 2)], entry(more=field(7, field(1, b''))), entry(crc=number(6 << 3 | 5) + b'abcd'), entry(crc=field(6, 5)),
    b'\x0b', b'\xff', b'\x12\xff\xff\xff\xff\x0f', field(1, b'xx'), field(2, 9)]


@pytest.mark.parametrize('bad', ENTRIES, ids=range(len(ENTRIES)))
def test_hostile_entries(tmp_path, bad):
    "Wrong contents under right checksums."
    write_v2(tmp_path/'m', {'a': np.float32([1, 2])}, change=lambda e: e.update({b'a': bad}))
    with pytest.raises(RRNError, match='cannot be read'): read_checkpoint(tmp_path/'m')


@pytest.mark.parametrize('header', [b'', field(1, 0), field(1, 2**50), field(1, 1) + field(2, 1), field(1, b'x')])
def test_hostile_headers(tmp_path, header):
    write_v2(tmp_path/'m', {'a': np.float32([1, 2])}, change=lambda e: e.update({b'': header}))
    with pytest.raises(RRNError, match='cannot be read'): read_checkpoint(tmp_path/'m')


@pytest.mark.parametrize('change', [
    lambda r: r[1:], lambda r: r[:-1], lambda r: [r[0], r[1], *r[1:]], lambda r: [(b'', b'\xff')],
    lambda r: [(b'', field(1, field(1, field(1, b'\xff\xfe'))))],
    lambda r: [(b'', field(1, field(1, field(1, b'a') + field(2, shape_message((2**31, 2**31))) + field(3, 1))))],
    lambda r: [r[0], (b'x', field(2, field(1, b'a') + field(2, field(1, field(1, 5) + field(2, 2))) + field(3, tensor(np.float32([1, 2])))))],
    lambda r: [r[0], (b'x', field(2, field(1, b'a') + field(2, b'') + field(3, tensor(np.float32([1, 2])))))],
    lambda r: [r[0], (b'x', field(2, field(1, b'a') + field(2, field(1, b'')) + field(3, field(5, b'abc'))))]], ids=range(9))
def test_hostile_version_1(tmp_path, change):
    write_v1(tmp_path/'m.ckpt', {'a': np.float32([1, 2])}, change=change)
    try: assert read_checkpoint(tmp_path/'m.ckpt') == {}
    except RRNError as e: assert 'cannot be read' in str(e)


def test_blocks_that_repeat_are_refused(tmp_path):
    "An index that names the same block again and again would be work without end."
    block = b'\0\1\0a' + struct.pack('<II', 0, 1) + b'\0'
    file = block + masked(block)
    content = b''.join(b'\0\1\2' + bytes([i]) + b'\0' + bytes([len(block) - 1]) for i in range(1, 100)) + struct.pack('<II', 0, 1) + b'\0'
    handle = number(len(file)) + number(len(content) - 1)
    (tmp_path/'m').write_bytes(file + content + masked(content) + (b'\0\0' + handle).ljust(40, b'\0') + struct.pack('<Q', 0xDB4775248B80FB57))
    with pytest.raises(RRNError, match='overlap'): read_checkpoint(tmp_path/'m')


def test_missing_parts(tmp_path):
    write_v2(tmp_path/'m', {'a': np.float32([1, 2])})
    (tmp_path/'m.data-00000-of-00001').unlink()
    with pytest.raises(RRNError, match='data-00000-of-00001 is missing'): read_checkpoint(tmp_path/'m')
    (tmp_path/'m.index').write_bytes(b'')
    for path in ('m', 'n.index', 'n', 'n.npy', 'n.pth', 'm.data-00000-of-00001', ''):
        with pytest.raises(RRNError): read_checkpoint(tmp_path/path)


@pytest.mark.parametrize('package', ['google_crc32c', 'cramjam'])
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, package):
    write_v2(tmp_path/'m', {'a': np.float32([1, 2])}, packed=True)
    monkeypatch.setattr(tf_checkpoint, package, MissingPackage(package, 'this'))
    with pytest.raises(RRNError, match=f'^this needs the package {package}, which is not installed: pip install {package}$'):
        read_checkpoint(tmp_path/'m')


def test_a_caffe_dictionary_makes_the_cnn(tmp_path, cnn):
    "The layers of the converted DeepLab, with a normalisation's Caffe names, in NumPy's pickled file."
    layers, caffe = {}, dict(gamma='scale', beta='offset', moving_mean='mean', moving_variance='variance')
    variables = backbone_to_tf(cnn)
    for n, v in variables.items():
        layer, leaf = n.rsplit('/', 1)
        layers.setdefault(layer, {})[caffe.get(leaf, leaf)] = v
    np.save(tmp_path/'deeplab_resnet.npy', layers, allow_pickle=True)
    found = read_checkpoint(tmp_path/'deeplab_resnet.npy'); (tmp_path/'deeplab_resnet.npy').unlink()
    assert found.keys() == variables.keys() and all(np.array_equal(found[n], v) for n, v in variables.items())


def python2_npy(array_bytes):
    "A .npy file as Python 2 and an old NumPy wrote it: protocol 2, strings without encoding."
    flags = {b'O8': b'?', b'f4': b'\x00'}                         # of a dtype: 63 for objects
    dtype = lambda code: b'cnumpy\ndtype\n(U' + bytes([len(code)]) + code + b'K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK' + flags[code] + b'tb'
    array = lambda shape, code, raw: b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01' + shape + dtype(code) + b'\x89' + raw + b'tb'
    leaf = array(b'K\x03\x85', b'f4', b'T' + struct.pack('<I', len(array_bytes)) + array_bytes)
    pickled = b'\x80\x02' + array(b')', b'O8', b']}U\x05conv1}U\x07weights' + leaf + b'ssa') + b'.'
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(69) + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + pickled


def test_a_dictionary_written_by_python_2(tmp_path):
    values = np.float32([1.5, -2, 1e-30])
    (tmp_path/'old.npy').write_bytes(python2_npy(values.tobytes()))
    assert np.load(tmp_path/'old.npy', allow_pickle=True, encoding='latin1').item()['conv1']['weights'].tolist() == values.tolist()     # NumPy agrees
    assert same(read_checkpoint(tmp_path/'old.npy'), {'conv1/weights': values})
    for n in (2, 11, 13):
        (tmp_path/'old.npy').write_bytes(python2_npy(bytes(n)))
        with pytest.raises(RRNError): read_checkpoint(tmp_path/'old.npy')
    good = python2_npy(values.tobytes())
    for i in range(len(good)):
        (tmp_path/'old.npy').write_bytes(good[:i])
        with pytest.raises(RRNError): read_checkpoint(tmp_path/'old.npy')


PICKLES = [b'cos\nsystem\nU\x04true\x85R.', b'cnumpy\nndarray\nK\x05\x85\x81.', b'cnumpy\nndarray\n}b.', b'cnumpy\ndtype\n(U\x03|V8tR.',
           b'cnumpy.core.multiarray\n_reconstruct\n)R.', b'cnumpy.core.multiarray\n_reconstruct\n)RK\x05b.', b'cnumpy\ndtype\n}b.', b'}.',
           b'K\x05.', b'cnumpy.core.multiarray\nscalar\n.', b'cnumpy\nfromfile\n.', b']q\x00h\x00a.', b'.', b'']


@pytest.mark.parametrize('pickled', [b'\x80\x02' + p for p in PICKLES] + [b''], ids=range(len(PICKLES) + 1))
def test_hostile_pickles(tmp_path, pickled):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(69) + b'\n'
    (tmp_path/'m.npy').write_bytes(b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + pickled)
    with pytest.raises(RRNError): read_checkpoint(tmp_path/'m.npy')


def torch_names(cnn):
    "The CNN's weights as a PyTorch port of DeepLab-v2 names them."
    from torchvision.models import resnet101
    with torch.device('meta'): names = [n for n in resnet101().state_dict() if not n.startswith('fc.')]
    variables = backbone_to_tf(cnn)
    state = {n: variables[port_name(n)] for n in names if port_name(n)}
    assert len(state) == len(variables)
    return {n: torch.from_numpy(v.transpose(3, 2, 0, 1).copy() if v.ndim == 4 else v) for n, v in state.items()}


def test_a_port_to_pytorch(tmp_path, cnn):
    state = {f'Scale.{n}': w for n, w in torch_names(cnn).items()}
    state |= {'Scale.bn1.num_batches_tracked': torch.tensor(3), 'Scale.layer5.conv2d_list.0.weight': torch.ones(2)}
    torch.save(state, tmp_path/'port.pth')
    found = read_checkpoint(tmp_path/'port.pth'); (tmp_path/'port.pth').unlink()
    net, image = from_port(found), torch.rand(1, 3, 33, 40) * 255
    with torch.no_grad(): assert torch.equal(net(image)['C5'], cnn(image)['C5'])
    with pytest.raises(RRNError, match='missing'): from_port({n: w for n, w in state.items() if 'layer3.5' not in n})


def test_torchvision_names_go_to_the_other_network(tmp_path, cnn):
    state = {f'backbone.{n}': w for n, w in torch_names(cnn).items()}
    torch.save(state | {'classifier.4.bias': torch.ones(21)}, tmp_path/'deeplabv3.pth')
    with pytest.raises(RRNError, match='build_backbone'): from_port(read_checkpoint(tmp_path/'deeplabv3.pth'))
    net = build_backbone('resnet101', tmp_path/'deeplabv3.pth'); (tmp_path/'deeplabv3.pth').unlink()
    assert torch.equal(net.net.layer4[2].conv3.weight, state['backbone.layer4.2.conv3.weight'])
