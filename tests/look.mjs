// Asks what tests/test_export.py wants to know of assets/web/rrn.js: node look.mjs rrn.js < questions > answers
import fs from 'node:fs';
const { splitWords, encode, fit, placePicture, unplace, Model } = await import(process.argv[2]);
const asked = JSON.parse(fs.readFileSync(0)), found = {};

if (asked.sentences) found.words = asked.sentences.map(splitWords);
if (asked.sizes) found.places = asked.sizes.map(([h, w]) => fit(h, w, 128));
if (asked.pictures) found.placed = asked.pictures.map(({ data, height, width }) => [...placePicture(Uint8Array.from(data), height, width, asked.size)[0]]);
if (asked.maps) found.unplaced = asked.maps.map(({ map, height, width }) => [...unplace(Float32Array.from(map), fit(height, width, asked.size))]);
if (asked.page) {
  const read = name => new Uint8Array(fs.readFileSync(`${asked.page}/${name}`)), folder = `models/${asked.model}`;
  const ort = await import(`${asked.page}/ort.wasm.bundle.min.mjs`);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: read('ort-wasm-simd-threaded.wasm') });
  const model = await Model.load(ort, JSON.parse(fs.readFileSync(`${asked.page}/${folder}/model.json`)), read(`${folder}/cnn.onnx`), read(`${folder}/head.onnx`));
  found.looks = [];
  for (const { data, height, width, sentence } of asked.questions) {
    await model.setImage(Uint8Array.from(data), height, width);
    const { steps, hidden, gates, others, mask, unknown } = await model.look(sentence);
    found.looks.push({ steps, hidden, gates, others, mask, unknown });
  }
}
console.log(JSON.stringify(found, (_, value) => ArrayBuffer.isView(value) ? [...value] : value));
