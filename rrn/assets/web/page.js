// The page: a picture, a sentence, and what one or two models make of them. All numbers come from rrn.js.
import * as ort from './ort.wasm.bundle.min.mjs';
import { Model } from './rrn.js';

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL('./ort-wasm-simd-threaded.wasm', import.meta.url).href };
const MOST = 480;                                // pixels of a picture's longer side
const at = id => document.getElementById(id);
const tell = text => { at('said').textContent = text; };
const opened = new Map();                        // name of a model -> the promise of it
let picture, waiting, busy;

async function json(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is not there.`);
  return answer.json();
}

async function load(name) {
  tell(`${name} is being loaded ...`);
  const folder = `models/${name}`;
  try { return await Model.load(ort, await json(`${folder}/model.json`), `${folder}/cnn.onnx`, `${folder}/head.onnx`); }
  catch (e) {
    opened.delete(name);                         // so that it can be tried again
    throw new Error(`${name} cannot be loaded: ${e.message}`);
  }
}

function open(name) {                            // a model is fetched when it is first asked
  if (!opened.has(name)) opened.set(name, load(name));
  return opened.get(name);
}

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

class View {                                     // what one model says; `names` are those to choose from
  constructor(label, names) {
    this.element = at('view').content.firstElementChild.cloneNode(true);
    this.choice = this.part('select');
    this.part('.label').textContent = label;
    this.choice.append(...names.map(name => new Option(name || 'none', name)));
    this.choice.onchange = ask;
    this.part('.mask').onclick = event => click(event, this.part('.mask').firstChild);
    at('views').append(this.element);
  }

  part(selector) { return this.element.querySelector(selector); }

  clear() {
    this.seen = undefined;
    delete this.element.dataset.shown;
  }

  async ask(asked, sentence) {                   // `asked` is a picture
    const name = this.choice.value;
    if (this.element.dataset.shown !== name) this.clear();
    if (!name) return;
    const model = await open(name);
    if (model.picture !== asked) {
      await model.setImage(asked.data, asked.height, asked.width);
      model.picture = asked;
    }
    const seen = await model.look(sentence);
    if (asked !== picture) return;               // another one was chosen meanwhile, and is asked about next
    [this.model, this.seen] = [model, Object.assign(seen, { picture })];
    this.show();
    this.element.dataset.shown = name;
  }

  show() {
    const { about } = this.model, { seen } = this;
    this.part('.about').textContent = [`Run ${about.run}.`, about.note].filter(text => text).join(' ');
    this.part('.mask').replaceChildren(tinted(seen.mask));
    this.part('.probability').replaceChildren(heat(seen.probability, .85));
    this.part('.inside').replaceChildren(...this.withoutWords(),
      row('Hidden states: the channel of each that goes along best with the answer', seen.hidden.map((m, t) => figure(about.states[t], heat(m)))),
      row('What is read from each', seen.steps.map((m, t) => figure(`p_${t}`, heat(m)))), ...this.gates());
    this.showPixel();
  }

  withoutWords() {
    const { seen } = this, changed = p => differing(this.model.maskOf(p), seen.mask);
    const less = seen.others.map((p, k) => figure(`without "${seen.words[k]}": ${changed(p)} pixels change`, surer(seen.probability, p)));
    return less.length ? [row('One word less: red is what the answer owes to it, blue what it keeps out', less)] : [];
  }

  gates() {                                      // a row for each letter; its maps share their colours
    const all = this.model.about.gates.map(([letter, step], k) => ({ letter, step, map: this.seen.gates[k] }));
    return [...new Set(all.map(gate => gate.letter))].sort().map(letter => {
      const those = all.filter(gate => gate.letter === letter), ranges = those.map(gate => range(gate.map));
      const low = Math.min(...ranges.map(([x]) => x)), high = Math.max(...ranges.map(([, x]) => x));
      return row(`Gate ${letter}, the mean over its channels`, those.map(({ step, map }, k) =>
        figure(`${letter}_${step}: ${ranges[k].map(x => x.toFixed(2)).join(' to ')}`, heat(map.map(x => (x - low) / Math.max(high - low, 1e-6))))));
    });
  }

  showPixel() {                                  // what is at the pixel that was clicked, step by step
    const { clicked, width } = picture, { seen } = this;
    if (!clicked || seen?.picture !== picture) return this.part('.pixel').replaceChildren();
    const i = clicked.y * width + clicked.x, { about } = this.model, rows = seen.steps.map((map, t) => {
      const cells = [['p', map[i]], ...about.gates.flatMap(([letter, step], k) => step === t ? [[letter, seen.gates[k][i]]] : [])];
      return `<tr><th>${about.states[t]}</th><td>${cells.map(([name, value]) =>
        `<label>${name} ${value.toFixed(3)} <meter min="0" max="1" value="${value}"></meter></label>`).join('')}</td></tr>`;
    });
    this.part('.pixel').innerHTML = `<table><caption>pixel (${clicked.x}, ${clicked.y})</caption>${rows.join('')}</table>`;
  }
}

const differing = (a, b) => a.reduce((n, x, i) => n + (x !== b[i]), 0);
const range = map => [map.reduce((a, b) => Math.min(a, b)), map.reduce((a, b) => Math.max(a, b))];
const surer = (a, b) => heat(a.map((x, i) => (1 + x - b[i]) / 2), .65, colours.coolwarm);      // red where a is higher

function click(event, drawn) {                   // both models are asked about the same pixel
  const box = drawn.getBoundingClientRect(), share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  const [x, y] = share.map((s, k) => Math.max(0, Math.min([picture.width, picture.height][k] - 1, Math.floor(s * [picture.width, picture.height][k]))));
  picture.clicked = { x, y };
  for (const view of views) view.showPixel();
}

function compare() {                             // where two answers to the same question differ
  const [one, two] = views.map(view => view.seen), current = view => view?.picture === picture;
  const alike = current(one) && current(two) && one.sentence === two.sentence;
  at('between').replaceChildren(...alike ? [row(`${differing(one.mask, two.mask)} pixels differ`,
    [figure(`${views.map(view => view.choice.value).join(' less ')}: red where the first is surer`, surer(one.probability, two.probability))])] : []);
}

function unknown() {                             // words that a model has never seen; by name, if there are two models
  const found = views.filter(view => view.seen?.unknown.length), asked = views.filter(view => view.seen);
  const by = view => asked.length > 1 ? ` by ${view.choice.value}` : '';
  return found.map(view => `never seen${by(view)}: ${view.seen.unknown.join(', ')}`).join('; ');
}

async function ask() {                           // the newest question is answered; those that were typed over meanwhile are not
  waiting = true;
  if (busy) return;
  busy = true;
  while (waiting) {
    waiting = false;
    const sentence = at('sentence').value, asked = picture, started = performance.now();
    try {
      for (const view of views) await view.ask(asked, sentence);
      tell(unknown());
    } catch (e) { tell(e.message); }
    compare();
    window.rrn = { picture, seen: views.map(view => view.seen), milliseconds: performance.now() - started };
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
  try { await take(file); } catch (e) { return tell(`${file.name} is no picture that can be read.`); }
  at('picture').value = 'own';
  propose([]);
  await ask();
}

const [models, scenes, colours] = await Promise.all(['models.json', 'scenes.json', 'colours.json'].map(json));
const views = [new View('model', models), new View('beside it', ['', ...models])];
at('picture').append(...scenes.map((scene, i) => new Option(scene.name, i)), new Option('your own ...', 'own'));
at('picture').onchange = choose;
at('upload').onchange = upload;
at('sentence').oninput = ask;
await choose();
document.body.dataset.ready = 'true';
