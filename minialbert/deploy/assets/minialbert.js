// A text model in a browser or in Node, with the words, windows and answers of minialbert's Python runtime.
//
//   const { entities } = await (await load()).predict("A text.");
//
// Offsets count UTF-16 units, as JavaScript's strings do: text.slice(entity.start, entity.end) is the entity.

const RUNS = new Set(["x", "X", "9"]);
const RUN_BORDERS = new Set(["X|9", "9|X"]);
const OF_NUMBERS = ".,:%";
const JOINER = "\u200d";
const ALIKE = { "\u2010": "-", "\u2011": "-", "\u2019": "'", "\u02bc": "'" }; // hyphens and apostrophes
const TAG = /^(?:O|([BI])-(.+))$/s;
// That of the tokenizer, in which spaces are those of Unicode; in JavaScript's own \s they are others.
const BYTE_LEVEL =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const UNIT = 1e-3; // a vector this near to length one was made so

/** Returns the value that a table of model.json has for a character: runs of code points with one value each. */
export function lookUp({ steps, values, names }) {
  let start = 0;
  const starts = steps.map((step) => (start += step));
  const known = new Map();
  return (character) => {
    let value = known.get(character);
    if (value === undefined) {
      const code = character.codePointAt(0);
      let [low, high] = [0, starts.length];
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (starts[middle] <= code) low = middle;
        else high = middle;
      }
      known.set(character, (value = names[values[low]]));
    }
    return value;
  };
}

// Words: minialbert_runtime/words.py

/** Returns the function that cuts a text into words, [start, end] each, by a model's rule. */
export function wordSplitter(rule, kindOf) {
  const decided = new Map(rule.joined.map((key) => [key, true]));
  rule.cut.forEach((key) => decided.set(key, false));
  const whole = new Set(rule.whole);
  const longest = Math.max(0, ...rule.whole.map((word) => word.length));
  const joins = (keys) => {
    const key = keys.find((one) => decided.has(one));
    return key === undefined ? RUN_BORDERS.has(keys.at(-1)) : decided.get(key);
  };
  return (text) => {
    const parts = textParts(text, kindOf);
    const joined = borders(parts).map((keys) => keys !== null && joins(keys));
    if (whole.size) keepWhole(text, parts, joined, whole, longest);
    const words = [];
    parts.forEach(([start, end], at) => {
      if (joined[at]) words.at(-1)[1] = end;
      else words.push([start, end]);
    });
    return words;
  };
}

function keepWhole(text, parts, joined, whole, longest) {
  for (let first = 0, last; first < parts.length; first = last) {
    last = first + 1;
    if (joined[first]) continue;
    const start = parts[first][0];
    let best = first;
    for (; last < parts.length && parts[last][0] === parts[last - 1][1]; last++) {
      if (parts[last][1] - start > longest) break;
      if (whole.has(text.slice(start, parts[last][1]))) best = last;
    }
    joined.fill(true, first + 1, best + 1);
    last = best + 1;
  }
}

function textParts(text, kindOf) {
  const parts = [];
  let [start, letters, kind, at, before] = [-1, 0, "", 0, ""]; // of the part that is open; -1 where none is
  const close = (end) => {
    const alone = kind === "X" && letters === 1;
    if (start >= 0) parts.push([start, end, alone ? "x" : kind || String.fromCodePoint(text.codePointAt(start))]);
    [start, letters, kind] = [-1, 0, ""];
  };
  for (const character of text) {
    const its = kindOf(character);
    const run = kind === "9" || kind === "X";
    const goesOn =
      its === "beside" || !kind || (its === kind && run) || (its === "picture" && !run && before === JOINER);
    if (its === " " || !goesOn) close(at);
    if (its !== " ") {
      if (start < 0) start = at;
      if (!kind && its !== "beside") kind = its === "mark" || its === "picture" ? ALIKE[character] ?? character : its;
      letters += its === "X";
    }
    before = character;
    at += character.length;
  }
  close(text.length);
  return parts;
}

function borders(parts) {
  const touches = (at) => at > 0 && at < parts.length && parts[at - 1][1] === parts[at][0];
  const kind = (at) => parts[at][2];
  return parts.map((_, at) =>
    touches(at)
      ? borderKeys(touches(at - 1) ? kind(at - 2) : "", kind(at - 1), kind(at), touches(at + 1) ? kind(at + 1) : "")
      : null,
  );
}

function borderKeys(before, left, right, after) {
  if (RUNS.has(left) && RUNS.has(right)) return [`${left}|${right}`, `${left}|${right}`.toUpperCase()];
  if (!RUNS.has(left) && !RUNS.has(right)) return [`${left}|${right}`];
  if (RUNS.has(left)) {
    const pairs = wider(right, left, RUNS.has(after) ? after : "$");
    const again = before === right ? pairs.map(([run, last]) => `${right}${run}|${right}${last}`) : [];
    return [...again, ...pairs.map(([run, last]) => `${run}|${right}${last}`)];
  }
  return wider(left, RUNS.has(before) ? before : "^", right).map(([first, run]) => `${first}${left}|${run}`);
}

function wider(mark, ...kinds) {
  const levels = [kinds, kinds.map((kind) => (kind === "x" ? "X" : kind))];
  if (!OF_NUMBERS.includes(mark)) levels.push(kinds.map((kind) => (RUNS.has(kind) ? "w" : kind)));
  return levels;
}

/** Returns the entities that IOB2 tags of words mark, {start, end, label}, without whitespace at their ends. */
export function tagsToSpans(tags, offsets, text, kindOf) {
  const spans = [];
  let label = null;
  tags.forEach((tag, at) => {
    const [, prefix, its] = TAG.exec(tag);
    if (its === undefined) label = null;
    else if (prefix === "I" && its === label) spans.at(-1).end = offsets[at][1];
    else spans.push({ start: offsets[at][0], end: offsets[at][1], label: (label = its) });
  });
  for (const span of spans) {
    while (span.start < span.end && kindOf(text[span.start]) === " ") span.start++;
    while (span.start < span.end && kindOf(text[span.end - 1]) === " ") span.end--;
  }
  return spans.filter((span) => span.start < span.end);
}

/** Returns the ids of the likeliest tags whose I- tags follow a B- or I- tag of their type, from values of words. */
export function likeliestPath(rows, labels) {
  const inside = labels.map((label) => label.startsWith("I-") && labels.includes(`B-${label.slice(2)}`));
  const isBroken = (before, id) => inside[id] && labels[before]?.slice(2) !== labels[id].slice(2);
  const alone = rows.map(top);
  if (!alone.some((id, at) => isBroken(alone[at - 1], id))) return alone;
  let [sums, back] = [rows[0].map((value, id) => (isBroken(-1, id) ? -Infinity : value)), []];
  for (const row of rows.slice(1)) {
    const from = labels.map((_, id) => top(sums.map((sum, before) => (isBroken(before, id) ? -Infinity : sum))));
    sums = row.map((value, id) => sums[from[id]] + value);
    back.push(from);
  }
  const path = [top(sums)];
  for (const from of back.reverse()) path.push(from[path.at(-1)]);
  return path.reverse();
}

// Inputs: minialbert_runtime/windows.py

/** Returns what turns texts, pairs and words into inputs; `encode` gives the ids of a text without special tokens. */
export function makeCutter(facts, encode) {
  const { max_length: most, overlap, pad_token_id: pad, unknown_token_id: unknown, layouts } = facts;
  const fill = (layout, parts) => {
    const [ids, types] = [[], []];
    for (const [token, type, sequence] of layout) {
      for (const id of sequence === null ? [token] : parts[sequence]) ids.push(id), types.push(type);
    }
    return { ids: ids.length ? ids : [pad], types: facts.token_types ? (ids.length ? types : [0]) : null };
  };
  const specials = (layout) => layout.filter(([, , sequence]) => sequence === null).length;
  const roomOf = (layout, what) => {
    const room = most - specials(layout);
    if (room < 1) throw new Error(`max_length ${most} leaves no room for ${what} beside the special tokens`);
    return room;
  };

  const texts = (given) => {
    const [parts, layout] = [given.map(encode), given.length === 2 ? layouts.pair : layouts.single];
    const tokens = parts.reduce((sum, ids) => sum + ids.length, 0);
    if (tokens + specials(layout) <= most) return { rows: [fill(layout, parts)], weights: [1], cut: 0 };
    let [room, longer, cut] = [roomOf(layout, "text"), 0, 0];
    if (parts.length === 2) {
      longer = parts[0].length > parts[1].length ? 0 : 1;
      const shorter = parts[1 - longer];
      parts[1 - longer] = shorter.slice(0, room >> 1);
      cut = shorter.length - parts[1 - longer].length;
      room -= parts[1 - longer].length;
    }
    const [content, shared, rows, weights] = [parts[longer], Math.min(overlap, room >> 1), [], []];
    let seen = 0;
    for (let begin = 0; seen < content.length && !(seen && facts.long_texts === "cut"); begin = seen - shared) {
      const end = Math.min(begin + room, content.length);
      parts[longer] = content.slice(begin, end);
      rows.push(fill(layout, parts));
      weights.push(end - seen);
      seen = end;
    }
    return { rows, weights, cut: cut + content.length - seen };
  };

  const words = (given) => {
    const room = roomOf(layouts.single, "words");
    const pieces = given.map((word) => encode(word).slice(0, room)).map((ids) => (ids.length ? ids : [unknown]));
    const spans = windowSpans(pieces.map((ids) => ids.length), room, overlap);
    const before = layouts.single.findIndex(([, , sequence]) => sequence === 0);
    let firstOwned = 0;
    return spans.map(([begin, end], index) => {
      const next = spans[index + 1]?.[0];
      const lastOwned = next === undefined ? end : next + ((end - next + 1) >> 1);
      const [ids, firsts] = [[], []]; // of each word that belongs here, the word and its first position
      for (let word = begin; word < end; word++) {
        if (firstOwned <= word && word < lastOwned) firsts.push([word, before + ids.length]);
        ids.push(...pieces[word]);
      }
      firstOwned = lastOwned;
      return { row: { ...fill(layouts.single, [ids]), types: null }, firsts };
    });
  };
  return { texts, words };
}

function windowSpans(lengths, room, overlap) {
  const spans = [];
  for (let begin = 0; begin < lengths.length; ) {
    let [end, taken] = [begin, 0];
    while (end < lengths.length && taken + lengths[end] <= room) taken += lengths[end++];
    spans.push([begin, end]);
    if (end === lengths.length) break;
    let [start, shared] = [end, 0];
    while (start - 1 > begin && shared + lengths[start - 1] <= overlap) shared += lengths[--start];
    // Repeat only as much as leaves room for the next word.
    while (start < end && shared + lengths[end] > room) shared -= lengths[start++];
    begin = start;
  }
  return spans;
}

/** Returns the function that gives a text's token ids, without special tokens. */
export function makeEncoder(Tokenizer, json, facts) {
  const added_tokens = json.added_tokens.filter((token) => !(facts.split_special_tokens && token.special));
  const own = facts.normal ? { normalizer: null, pre_tokenizer: null } : {};
  const bytes = facts.add_prefix_space ? { pre_tokenizer: { ...json.pre_tokenizer, add_prefix_space: true } } : {};
  const parts = { ...json, ...own, ...bytes, added_tokens, post_processor: null, decoder: null };
  const tokenizer = new Tokenizer(parts, { clean_up_tokenization_spaces: false });
  if (facts.normal) {
    // BERT's own steps, as the tokenizer takes them in Python: JavaScript's rules for characters are others.
    const [normal, border] = [lookUp(facts.normal), lookUp(facts.borders)];
    const normalised = (character) => {
      const form = normal(character);
      if (form === "\0") return character;
      return form === "\x01" ? character.normalize("NFD") : form.replaceAll("\0", character);
    };
    tokenizer.normalizer = (text) => Array.from(text, normalised).join("");
    tokenizer.pre_tokenizer = (text) => {
      const words = [""];
      for (const character of text) {
        const its = border(character);
        if (its === "inside") words[words.length - 1] += character;
        else words.push(its === "mark" ? character : "", "");
      }
      return words.filter(Boolean);
    };
  }
  if (json.pre_tokenizer?.type === "ByteLevel") tokenizer.pre_tokenizer.pattern = BYTE_LEVEL;
  return (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
}

// Answers: minialbert_runtime/answers.py

const softmax = (logits) => {
  const most = logits.reduce((one, other) => Math.max(one, other));
  const powers = Array.from(logits, (value) => Math.exp(value - most));
  const sum = powers.reduce((one, other) => one + other, 0);
  return powers.map((power) => power / sum);
};
const named = (labels, values) => Object.fromEntries(labels.map((label, id) => [label, values[id]]));
export const highest = (scores) => Object.entries(scores).sort((one, other) => other[1] - one[1]);
const length = (vector) => Math.hypot(...vector);
const top = (values) => values.indexOf(Math.max(...values));
const shifted = (logits, over) => Array.from(logits, (value, id) => value - (over?.[id] ?? 0));

const ANSWERS = {
  "single-label": (logits, labels, over, threshold) => {
    const [scores, at] = [softmax(logits), top(shifted(logits, over))];
    const isChosen = threshold === undefined || scores[at] > threshold;
    return { label: isChosen ? labels[at] : null, score: scores[at], scores: named(labels, scores) };
  },
  "multi-label": (logits, labels, over, threshold = 0.5) => {
    const least = over ?? labels.map(() => Math.log(threshold) - Math.log1p(-threshold));
    const scores = Array.from(logits, (value) => 1 / (1 + Math.exp(-value)));
    return { labels: labels.filter((_, id) => logits[id] > least[id]), scores: named(labels, scores) };
  },
  regression: (logits) => ({ score: logits[0] }),
  embedding: (logits) => ({ vector: Array.from(logits) }),
};

/** A model that answers texts; `load` makes it. */
export class Model {
  #own;
  #last = Promise.resolve();

  constructor(facts, encode, run, options = {}) {
    const { threshold, topK, maxCharacters } = options;
    if (threshold !== undefined && !(threshold >= 0 && threshold <= 1))
      throw new Error(`expected a threshold from 0 to 1, found ${threshold}`);
    for (const [name, value] of Object.entries({ topK, maxCharacters }))
      if (value !== undefined && !(value >= 1)) throw new Error(`expected ${name} of at least 1, found ${value}`);
    const without = { threshold: ["regression", "embedding"], topK: ["regression", "embedding", "token"] };
    for (const [name, problems] of Object.entries(without))
      if (options[name] !== undefined && problems.includes(facts.problem))
        throw new Error(`a ${facts.problem} model has no use for ${name}: leave it out`);
    Object.assign(this, { problem: facts.problem, labels: facts.labels, prompts: facts.prompts, pairs: facts.pairs });
    this.options = { threshold, topK, maxCharacters: maxCharacters ?? facts.max_characters };
    const [cutter, kindOf] = [makeCutter(facts, encode), lookUp(facts.kinds)];
    const split = wordSplitter(facts.words ?? { joined: [], cut: [], whole: [] }, kindOf);
    const over = threshold === undefined ? facts.over : null; // of each label, what is taken from its logit
    this.#own = { cutter, kindOf, split, run, over, temperature: facts.temperature, decoding: facts.decoding };
  }

  /** Returns the answer to a text or a pair of texts, with the keys of the Python runtime's. */
  async predict(text, pair) {
    const given = pair === undefined || pair === null ? [text] : [text, pair];
    given.forEach((part) => this.#check(part));
    if (this.problem === "token") return this.#entities(...given);
    if (this.pairs !== null && this.pairs !== (given.length === 2)) {
      const [found, wanted] = this.pairs ? ["a single text", "pairs of texts"] : ["a pair", "single texts"];
      throw new Error(`found ${found}, but the model was tuned on ${wanted}`);
    }
    return this.#classes(given);
  }

  /** Returns one vector a text, Float32Array each; of length one with `normalize`, and of `dim` leading dimensions. */
  async embed(texts, { dim, prompt = "", normalize = false } = {}) {
    const width = this.labels.length;
    if (this.problem !== "embedding") throw new Error(`a ${this.problem} model gives no vectors`);
    if (dim !== undefined && !(dim >= 1 && dim <= width))
      throw new Error(`expected from 1 to ${width} dimensions, found ${dim}`);
    const vectors = [];
    for (const text of texts) {
      const vector = (await this.predict(prompt + text)).vector.slice(0, dim ?? width);
      const size = normalize || dim !== undefined ? length(vector) || 1 : 1;
      vectors.push(Float32Array.from(vector, (value) => value / size));
    }
    return vectors;
  }

  #check(text) {
    const most = this.options.maxCharacters;
    if (typeof text !== "string") throw new Error(`expected a text or a pair of texts, found ${typeof text}`);
    if (text.length > most && Array.from(text).length > most)
      throw new Error(`more than ${most} characters: split the text, or give a larger maxCharacters`);
    if (/\p{Surrogate}/u.test(text)) throw new Error("the text holds half of a surrogate pair");
  }

  /** Runs one input after the other: a graph with ranges of its own for each input answers alike in any company. */
  async #logits(row) {
    const turn = this.#last.then(() => this.#own.run(row));
    this.#last = turn.catch(() => {});
    const values = await turn;
    if (!values.every(Number.isFinite)) throw new Error("the model's outputs are not finite");
    return values;
  }

  async #classes(given) {
    const { rows, weights, cut } = this.#own.cutter.texts(given);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    let [mean, unit] = [new Float64Array(this.labels.length), false];
    for (const [at, row] of rows.entries()) {
      const values = await this.#logits(row);
      unit ||= at === 0 && this.problem === "embedding" && Math.abs(length(values) - 1) < UNIT;
      mean = mean.map((sum, id) => sum + (values[id] * weights[at]) / total);
    }
    const { over, temperature } = this.#own;
    const size = unit ? length(mean) : temperature;
    mean = mean.map((value) => value / size);
    const [{ threshold, topK }, texts] = [this.options, given.length === 2 ? { pair: given[1] } : {}];
    const result = { text: given[0], ...texts, ...ANSWERS[this.problem](mean, this.labels, over, threshold) };
    if (topK && result.scores) result.scores = Object.fromEntries(highest(result.scores).slice(0, topK));
    if (rows.length > 1) result.windows = rows.length;
    if (cut) result.cut = cut;
    return result;
  }

  async #entities(text, pair) {
    if (pair !== undefined) throw new Error("found a pair, but entities are found in single texts");
    const offsets = this.#own.split(text);
    const [byWord, width, { over, temperature, decoding }] = [[], this.labels.length, this.#own];
    for (const { row, firsts } of this.#own.cutter.words(offsets.map(([start, end]) => text.slice(start, end)))) {
      const logits = await this.#logits(row);
      for (const [word, position] of firsts)
        byWord[word] = logits.slice(position * width, (position + 1) * width).map((value) => value / temperature);
    }
    const rows = byWord.map((values) => shifted(values, over));
    const ids = decoding === "viterbi" ? likeliestPath(rows, this.labels) : rows.map(top);
    const [tags, chances] = [ids.map((id) => this.labels[id]), ids.map((id, word) => softmax(byWord[word])[id])];
    const entities = tagsToSpans(tags, offsets, text, this.#own.kindOf).map(({ start, end, label }) => {
      const inside = chances.filter((_, word) => offsets[word][1] > start && offsets[word][0] < end);
      const score = inside.reduce((sum, chance) => sum + chance, 0) / Math.max(1, inside.length);
      return { start, end, text: text.slice(start, end), label, score };
    });
    return { text, entities: entities.filter(({ score }) => !(score <= this.options.threshold)) };
  }
}

// Files and engine

async function read(url) {
  if (url.protocol === "file:") return (await import("node:fs/promises")).readFile(url);
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be read: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/**
 * Returns the model of a folder that `minialbert export --to web` wrote.
 *
 * @param {string} base address of the folder, relative to this file.
 * @param {object} options `threshold`, `topK` and `maxCharacters` as in Python; `threads`; `ort`, another build of
 *   onnxruntime-web, and `session`, options of its session.
 */
export async function load(base = "./", options = {}) {
  const root = new URL(base, import.meta.url);
  const at = (name) => new URL(name, root);
  const json = async (name) => JSON.parse(new TextDecoder().decode(await read(at(name))));
  const engine = async () => {
    if (options.ort) return options.ort;
    const ort = await import(at("vendor/ort.js"));
    ort.env.wasm.wasmPaths = { mjs: at("vendor/ort-wasm.js").href, wasm: at("vendor/ort-wasm.wasm").href };
    if (root.protocol === "file:") ort.env.wasm.wasmBinary = await read(at("vendor/ort-wasm.wasm"));
    const several = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    ort.env.wasm.numThreads = options.threads ?? several;
    return ort;
  };
  const [facts, tokenizer, graph, ort, { Tokenizer }] = await Promise.all([
    json("model.json"), json("tokenizer.json"), read(at("model.onnx")), engine(), import(at("vendor/tokenizers.js")),
  ]);
  const session = await ort.InferenceSession.create(graph, options.session ?? { executionProviders: ["wasm"] });
  const run = async ({ ids, types }) => {
    const shape = [1, ids.length];
    const columns = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types ?? ids.map(() => 0) };
    const tensor = (name) => new ort.Tensor("int64", BigInt64Array.from(columns[name], BigInt), shape);
    const inputs = Object.fromEntries(session.inputNames.map((name) => [name, tensor(name)]));
    return (await session.run(inputs, [facts.output]))[facts.output].data;
  };
  return new Model(facts, makeEncoder(Tokenizer, tokenizer, facts), run, options);
}
