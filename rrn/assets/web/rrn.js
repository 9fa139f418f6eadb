// What a model does around its two networks: words to numbers, a picture to the network's size and back. No page is needed for it.

export function splitWords(sentence) {          // rrn.text.split_words
  const text = sentence.normalize('NFKC').toLowerCase().replaceAll('\u2019', "'");
  const runs = text.replace(/[^\p{L}\p{N}\p{M}']/gu, ' ').split(' ');
  return runs.map(run => run.replace(/^'+|'+$/g, '')).filter(word => word);
}

export function encode(sentence, model) {       // numbers of the words, and the words that the model has never seen
  const words = splitWords(sentence), index = new Map(model.words.map((word, number) => [word, number]));
  const numbers = words.slice(0, model.max_words).map(word => index.get(word) ?? index.get('<unk>'));
  return { words, numbers, unknown: words.filter(word => !index.has(word)) };
}

function roundHalfEven(x) {
  const floor = Math.floor(x), rest = x - floor;
  return rest < .5 ? floor : rest > .5 ? floor + 1 : floor + floor % 2;
}

export function fit(height, width, size) {      // rrn.image.fit
  const scale = Math.min(size / height, size / width);
  const [h, w] = [height, width].map(side => Math.max(1, roundHalfEven(side * scale)));
  return { height, width, h, w, top: Math.floor((size - h) / 2), left: Math.floor((size - w) / 2), size };
}

function weights(from, to, i) {                 // the triangle of an output pixel: bilinear, wider where an axis shrinks
  const scale = from / to, support = Math.max(scale, 1), centre = (i + .5) * scale;
  const first = Math.max(Math.trunc(centre - support + .5), 0), last = Math.min(Math.trunc(centre + support + .5), from);
  const all = [];
  for (let j = first; j < last; j++) all.push(Math.max(0, 1 - Math.abs((j - centre + .5) / support)));
  const sum = all.reduce((a, b) => a + b, 0);
  return [first, all.map(x => x / sum)];
}

export function resize(map, h, w, H, W, whole = false) {      // (h, w) to (H, W); `whole`: rounded as bytes are
  const round = whole ? Math.round : (x => x), wide = new Float32Array(h * W), out = new Float32Array(H * W);
  for (let x = 0; x < W; x++) {
    const [first, share] = weights(w, W, x);
    for (let y = 0; y < h; y++) {
      let sum = 0;
      for (let j = 0; j < share.length; j++) sum += share[j] * map[y * w + first + j];
      wide[y * W + x] = round(sum);
    }
  }
  for (let y = 0; y < H; y++) {
    const [first, share] = weights(h, H, y);
    for (let x = 0; x < W; x++) {
      let sum = 0;
      for (let j = 0; j < share.length; j++) sum += share[j] * wide[(first + j) * W + x];
      out[y * W + x] = round(sum);
    }
  }
  return out;
}

export function placePicture(pixels, height, width, size) {   // bytes (height, width, 3 or 4) to (3, size, size), zeros around
  const channels = pixels.length / (height * width), p = fit(height, width, size), out = new Float32Array(3 * size * size);
  for (let c = 0; c < 3; c++) {
    const map = Float32Array.from({ length: height * width }, (_, i) => pixels[i * channels + c]);
    const small = resize(map, height, width, p.h, p.w, true);
    for (let y = 0; y < p.h; y++)
      out.set(small.subarray(y * p.w, (y + 1) * p.w), (c * size + p.top + y) * size + p.left);
  }
  return [out, p];
}

export function unplace(map, p) {               // (size, size) to (height, width): rrn.image.unplace
  const inner = new Float32Array(p.h * p.w);
  for (let y = 0; y < p.h; y++) inner.set(map.subarray((p.top + y) * p.size + p.left, (p.top + y) * p.size + p.left + p.w), y * p.w);
  return resize(inner, p.h, p.w, p.height, p.width);
}

const mean = a => a.reduce((x, y) => x + y, 0) / a.length;

export function tellingChannel(states, wanted) {     // [state: [channel: (h, w)]]: of each state the channel nearest to `wanted`
  const last = states.at(-1), b = wanted.map((m => x => x - m)(mean(wanted)));
  const along = last.map(channel => {
    const m = mean(channel), a = channel.map(x => x - m);
    const dot = a.reduce((sum, x, i) => sum + x * b[i], 0), sizes = Math.sqrt(a.reduce((s, x) => s + x * x, 0) * b.reduce((s, x) => s + x * x, 0));
    return sizes > 0 ? dot / sizes : 0;
  });
  const best = along.reduce((k, x, i) => Math.abs(x) > Math.abs(along[k]) ? i : k, 0), sign = Math.sign(along[best]);
  const maps = states.map(state => state[best].map(x => x * sign)), all = maps.flatMap(map => [...map]);
  const low = all.reduce((x, y) => Math.min(x, y), Infinity), high = all.reduce((x, y) => Math.max(x, y), -Infinity);
  return maps.map(map => map.map(x => (x - low) / Math.max(high - low, 1e-12)));
}

function parts(tensor) {                         // along the first dimension, as Float32Arrays
  const n = tensor.dims[0], size = tensor.data.length / n;
  return Array.from({ length: n }, (_, i) => tensor.data.slice(i * size, (i + 1) * size));
}

export class Model {
  constructor(ort, about, cnn, head) { Object.assign(this, { ort, about, cnn, head }); }

  static async load(ort, about, cnn, head) {     // what model.json says, and the two networks as bytes or addresses
    const open = network => ort.InferenceSession.create(network, { executionProviders: ['wasm'] });
    return new Model(ort, about, await open(cnn), await open(head));
  }

  async setImage(pixels, height, width) {        // bytes (height, width, 3 or 4)
    const size = this.about.image_size, [placed, placement] = placePicture(pixels, height, width, size);
    const image = new this.ort.Tensor('float32', placed, [1, 3, size, size]);
    [this.placement, this.maps] = [placement, await this.cnn.run({ image })];
  }

  async run(numbers) {
    const ids = BigInt64Array.from(numbers.length ? numbers : [0], BigInt);
    const words = new this.ort.Tensor('int64', ids, [1, ids.length]);
    return this.head.run({ words, ...this.maps });
  }

  async predict(numbers) {                       // probability (height, width) of the words with these numbers
    return unplace(parts((await this.run(numbers)).steps).at(-1), this.placement);
  }

  large(map, side) { return unplace(resize(map, side, side, this.about.image_size, this.about.image_size), this.placement); }

  async look(sentence) {                         // rrn.experiments.explore.look: an answer, and what was inside
    const { words, numbers, unknown } = encode(sentence, this.about);
    if (!words.length) throw new Error('Say what to look for.');
    const found = await this.run(numbers), side = found.states.dims[2];
    const steps = parts(found.steps).map(map => unplace(map, this.placement)), probability = steps.at(-1);
    const states = parts(found.states).map(state => parts({ dims: [found.states.dims[1]], data: state }));
    const shown = tellingChannel(states.slice(0, 1), parts(found.small).at(-1))
      .concat(states.length > 1 ? tellingChannel(states.slice(1), parts(found.small).at(-1)) : []);
    const gates = found.gates ? parts(found.gates).map(map => this.large(map, side)) : [];
    const others = [];
    if (numbers.length > 1)
      for (let i = 0; i < numbers.length; i++) others.push(await this.predict(numbers.filter((_, j) => j !== i)));
    const mask = this.maskOf(probability);
    return { sentence, unknown, mask, probability, steps, gates, hidden: shown.map(map => this.large(map, side)),
             words: words.slice(0, this.about.max_words), others };
  }

  maskOf(probability) { return Uint8Array.from(probability, p => p >= this.about.threshold); }
}
