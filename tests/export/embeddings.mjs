// Prints the ids and the embeddings that transformers.js computes: embeddings.mjs FOLDER PICTURE < texts.json

import { readFileSync } from "node:fs";
import {
  AutoProcessor,
  AutoTokenizer,
  CLIPTextModelWithProjection,
  CLIPVisionModelWithProjection,
  RawImage,
} from "@huggingface/transformers";

const [folder, picture] = process.argv.slice(2);
const texts = JSON.parse(readFileSync(0, "utf-8"));
const options = { local_files_only: true, dtype: "auto" };
const processor = await AutoProcessor.from_pretrained(folder, options);
const tokenizer = await AutoTokenizer.from_pretrained(folder, options);
const vision = await CLIPVisionModelWithProjection.from_pretrained(folder, options);
const text = await CLIPTextModelWithProjection.from_pretrained(folder, options);

const pixels = await processor(await RawImage.read(picture));
const batch = tokenizer(texts, { padding: true, truncation: true });
const { image_embeds } = await vision(pixels);
const { text_embeds } = await text(batch);
const numbers = (tensor) => tensor.tolist().map((row) => row.map(Number));
console.log(
  JSON.stringify({
    pixels: Array.from(pixels.pixel_values.data),
    ids: numbers(batch.input_ids),
    image_emb: numbers(image_embeds),
    text_emb: numbers(text_embeds),
  }),
);
