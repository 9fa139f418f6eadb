// The page: a picture, a sentence, and what the model makes of them. All numbers come from rrn.js.
import * as ort from './ort.wasm.bundle.min.mjs';
import { Model } from './rrn.js';

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL('./ort-wasm-simd-threaded.wasm', import.meta.url).href };
const MOST = 480;                                // pixels of a picture's longer side
const at = id => document.getElementById(id);
const json = async name => (await fetch(name)).json();
const [about, scenes, colours] = await Promise.all(['model.json', 'scenes.json', 'colours.json'].map(json));
const model = await Model.load(ort, about, 'cnn.onnx', 'head.onnx');
let picture, seen, waiting, busy;

function canvas(width, height, paint) {          // paint(i) gives the colour [r, g, b] of pixel i
  const made = Object.assign(document.createElement('canvas'), { width, height });
  const context = made.getContext('2d'), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...paint(i), 255], 4 * i);
  context.putImageData(image, 0, 0);
  return made;
}

const pixel = i => [0, 1, 2].map(c => picture.data[4 * i + c]);
const mix = (a, b, share) => a.map((x, c) => share * x + (1 - share) * b[c]);
const colour = (table, p) => table[Math.max(0, Math.min(255, Math.round(255 * p)))];

function heat(map, share = .65, table = colours.inferno) {
  return canvas(picture.width, picture.height, i => {
    const grey = pixel(i).reduce((a, b) => a + b) / 3;
    return mix(colour(table, map[i]), [grey, grey, grey], share);
  });
}

function tinted(mask) {
  const { width, height } = picture, inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
  return canvas(width, height, i => {
    if (!mask[i]) return pixel(i);
    const x = i % width, y = Math.floor(i / width);
    const edge = !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
    return mix([255, 90, 0], pixel(i), edge ? 1 : .5);
  });
}

function figure(title, drawn) {
  const made = document.createElement('figure'), caption = document.createElement('figcaption');
  caption.textContent = title;
  drawn.setAttribute('role', 'img');
  drawn.setAttribute('aria-label', title);
  made.append(drawn, caption);
  return made;
}

function row(title, figures) {
  const made = document.createElement('section'), heading = document.createElement('h2'), line = document.createElement('div');
  heading.textContent = title;
  line.className = 'row';
  line.append(...figures);
  made.append(heading, line);
  return made;
}

function show() {
  const changed = p => model.maskOf(p).reduce((n, m, i) => n + (m !== seen.mask[i]), 0);
  const less = seen.others.map((p, k) => figure(`without "${seen.words[k]}": ${changed(p)} pixels change`,
    heat(p.map((x, i) => (1 + seen.probability[i] - x) / 2), .65, colours.coolwarm)));
  const letters = [...new Set(about.gates.map(([letter]) => letter))].sort();
  at('mask').replaceChildren(tinted(seen.mask));
  at('probability').replaceChildren(heat(seen.probability, .85));
  at('inside').replaceChildren(...(less.length ? [row('One word less: red is what the answer owes to it, blue what it keeps out', less)] : []),
    row('Hidden states: the channel of each that goes along best with the answer', seen.hidden.map((m, t) => figure(about.states[t], heat(m)))),
    row('What is read from each', seen.steps.map((m, t) => figure(`p_${t}`, heat(m)))),
    ...letters.map(letter => row(`Gate ${letter}, the mean over its channels`, about.gates.flatMap(([name, step], k) => {
      if (name !== letter) return [];
      const all = about.gates.flatMap(([n], j) => n === letter ? [seen.gates[j]] : []);
      const low = Math.min(...all.map(m => m.reduce((a, b) => Math.min(a, b)))), high = Math.max(...all.map(m => m.reduce((a, b) => Math.max(a, b))));
      return [figure(`${letter}_${step}: ${low.toFixed(2)} to ${high.toFixed(2)}`, heat(seen.gates[k].map(x => (x - low) / Math.max(high - low, 1e-6))))];
    }))));
  at('said').textContent = seen.unknown.length ? `never seen: ${seen.unknown.join(', ')}` : '';
  showPixel();
}

function showPixel() {                           // what is at the pixel that was clicked, step by step
  const { x, y } = picture.clicked ?? {};
  if (x === undefined) return;
  const i = y * picture.width + x, rows = seen.steps.map((map, t) => {
    const cells = [['p', map[i]], ...about.gates.flatMap(([letter, step], k) => step === t ? [[letter, seen.gates[k][i]]] : [])];
    return `<tr><th>${about.states[t]}</th><td>${cells.map(([name, value]) =>
      `<label>${name} ${value.toFixed(3)} <meter min="0" max="1" value="${value}"></meter></label>`).join('')}</td></tr>`;
  });
  at('pixel').innerHTML = `<table><caption>pixel (${x}, ${y})</caption>${rows.join('')}</table>`;
}

async function ask() {                           // the newest question is answered; those that were typed over meanwhile are not
  waiting = true;
  if (busy) return;
  busy = true;
  while (waiting) {
    waiting = false;
    const sentence = at('sentence').value, started = performance.now();
    try {
      seen = await model.look(sentence);
      show();
    } catch (e) { at('said').textContent = e.message; }
    window.rrn = { model, picture, seen, milliseconds: performance.now() - started };
    document.body.dataset.asked = sentence;      // for who waits for the answer
  }
  busy = false;
}

async function take(source) {                    // a picture's file or address
  const blob = source instanceof Blob ? source : await (await fetch(source)).blob();
  const bitmap = await createImageBitmap(blob, { imageOrientation: 'from-image' });
  const scale = Math.min(1, MOST / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map(side => Math.max(1, Math.round(side * scale)));
  const context = new OffscreenCanvas(width, height).getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, width, height);
  picture = { data: context.getImageData(0, 0, width, height).data, width, height };
  at('pixel').replaceChildren();
  await model.setImage(picture.data, height, width);
}

function propose(sentences) {
  at('others').replaceChildren(...sentences.map(sentence => {
    const button = document.createElement('button');
    button.textContent = sentence;
    button.onclick = () => { at('sentence').value = sentence; ask(); };
    return button;
  }));
}

async function choose() {
  const scene = scenes[at('picture').value];
  if (!scene) return at('upload').click();
  await take(scene.picture);
  propose(scene.sentences);
  at('sentence').value = scene.sentences[0];
  await ask();
}

async function upload() {
  const [file] = at('upload').files;
  if (!file) return;
  try { await take(file); } catch (e) { return at('said').textContent = `${file.name} is no picture that can be read.`; }
  at('picture').value = 'own';
  propose([]);
  await ask();
}

at('name').textContent = about.name;
at('run').textContent = about.run;
at('note').textContent = about.note;
at('picture').append(...scenes.map((scene, i) => new Option(scene.name, i)), new Option('your own ...', 'own'));
at('picture').onchange = choose;
at('upload').onchange = upload;
at('sentence').oninput = ask;
at('mask').onclick = event => {
  const box = at('mask').firstChild.getBoundingClientRect(), share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  const [x, y] = share.map((s, k) => Math.max(0, Math.min([picture.width, picture.height][k] - 1, Math.floor(s * [picture.width, picture.height][k]))));
  picture.clicked = { x, y };
  showPixel();
};
await choose();
document.body.dataset.ready = 'true';
