// The text of an answer, token by token. The model's output becomes text nodes, never HTML.

const FENCE = /^ {0,3}```/;
const HEADING = /^#{1,6} +/;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/g;

/** The tokens of an answer in an element; drafted ones are in <mark>. */
class TokenText {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.ends = []; // end of each token in the text
    this.drafted = [];
  }

  get numTokens() {
    return this.ends.length;
  }

  get numDrafted() {
    return this.drafted.filter(Boolean).length;
  }

  add(tokens) {
    for (const { text, drafted } of tokens) {
      this.text += text;
      this.ends.push(this.text.length);
      this.drafted.push(drafted);
    }
  }

  /** Show the added text: it may change the last block, and add further blocks. */
  show() {
    const { element } = this;
    const numKept = Math.max(element.childElementCount - 1, 0);
    element.lastElementChild?.remove();
    for (const block of blocksOf(this.text).slice(numKept)) element.append(this.render(block));
  }

  render({ tag, begin, end }) {
    const shown = document.createElement(tag);
    if (tag === "pre") {
      this.appendTokens(shown, begin, end);
      return shown;
    }
    let place = begin;
    for (const match of this.text.slice(begin, end).matchAll(INLINE)) {
      const at = begin + match.index;
      const width = match[1] ? 1 : 2;
      const inner = document.createElement(match[1] ? "code" : "strong");
      this.appendTokens(shown, place, at);
      place = at + match[0].length;
      this.appendTokens(inner, at + width, place - width);
      shown.append(inner);
    }
    this.appendTokens(shown, place, end);
    return shown;
  }

  appendTokens(parent, begin, end) {
    let place = begin;
    for (let token = this.tokenAt(begin); place < end; token += 1) {
      const until = Math.min(this.ends[token], end);
      appendToken(parent, this.text.slice(place, until), this.drafted[token]);
      place = until;
    }
  }

  /** Return the first token that ends after a position of the text. */
  tokenAt(place) {
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > place) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Append a token; white space before a drafted word is not marked. */
function appendToken(parent, text, drafted) {
  const word = drafted ? text.trimStart() : "";
  parent.append(text.slice(0, text.length - word.length));
  if (!word) return;
  const mark = document.createElement("mark");
  mark.textContent = word;
  parent.append(mark);
}

/** Return the paragraphs, headings and code blocks of a text, as {tag, begin, end}. */
function blocksOf(text) {
  const blocks = [];
  let open = null;
  const add = (tag, begin, end) => blocks.push((open = { tag, begin, end }));
  for (const { index, 0: line } of text.matchAll(/[^\n]*\n|[^\n]+$/g)) {
    const end = index + line.length;
    const heading = line.match(HEADING)?.[0];
    if (FENCE.test(line)) {
      if (open?.tag === "pre") open = null;
      else add("pre", end, end);
    } else if (open?.tag === "pre") open.end = end;
    else if (!line.trim()) open = null;
    else if (heading) {
      add("h3", index + heading.length, index + line.trimEnd().length);
      open = null;
    } else if (open) open.end = index + line.trimEnd().length;
    else add("p", index, index + line.trimEnd().length);
  }
  return blocks;
}
