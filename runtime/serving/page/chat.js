// The conversation: questions, answers with and without drafts, and their figures.

const at = (id) => document.getElementById(id);
const WAYS = { true: "With drafts", false: "Without drafts" };
const turns = []; // {messages, options, panes}: a question and its answers
let running = null; // the AbortController of the running answer

/** Create an element. Its content is text or other elements. */
function make(tag, className, ...content) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...content);
  return element;
}

function button(text, onClick) {
  const element = make("button", "", text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

/** Make a change, and stay at the end of the chat unless the reader has scrolled away from it. */
function follow(change) {
  const chat = at("chat");
  const wasAtEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60;
  change();
  if (wasAtEnd) chat.scrollTop = chat.scrollHeight;
}

/** One answer to a question. end: its {finish, figures}; null until it is complete. */
class Pane {
  constructor(drafts) {
    this.drafts = drafts;
    this.end = null;
    this.body = make("div", "text");
    this.note = make("p", "note", "Waiting in line …");
    this.element = make("section", "pane", make("h3", "way", WAYS[drafts]), this.body, this.note);
    this.element.setAttribute("aria-label", `Answer ${WAYS[drafts].toLowerCase()}`);
    this.element.dataset.drafts = drafts;
    this.element.dataset.state = "running";
    this.tokens = new TokenText(this.body);
    this.isDue = false;
  }

  add(tokens) {
    this.tokens.add(tokens);
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => this.show());
  }

  show() {
    this.isDue = false;
    follow(() => {
      this.tokens.show();
      if (this.element.dataset.state === "running") this.note.textContent = this.progress();
    });
  }

  progress() {
    const { numTokens, numDrafted } = this.tokens;
    return `${numTokens} tokens, ${numDrafted} of them drafted`;
  }

  /** state: "complete", "stopped" or "failed". */
  finish(state, note, ...more) {
    this.element.dataset.state = state;
    follow(() => {
      this.tokens.show();
      this.note.replaceChildren(note, ...more);
    });
    at("status").textContent = state === "complete" ? "The answer is complete." : note;
  }
}

/** Answer a turn in a new pane. */
async function answer(turn, drafts) {
  const pane = new Pane(drafts);
  turn.panes.push(pane);
  follow(() => {
    turn.row.append(pane.element);
    turn.row.classList.toggle("two", turn.panes.length > 1);
    turn.more.replaceChildren();
  });
  running = new AbortController();
  showRunning();
  try {
    const request = { messages: turn.messages, ...turn.options, drafts };
    pane.end = await askFor(request, running.signal, (tokens) => pane.add(tokens));
    pane.finish("complete", noteOf(pane.end));
  } catch (error) {
    if (error.name === "AbortError") pane.finish("stopped", `Stopped: ${pane.progress()}.`);
    else showFailure(turn, pane, error);
  } finally {
    running = null;
    follow(() => showMore(turn));
    showRunning();
  }
}

function showFailure(turn, pane, error) {
  const again = button("Try again", () => {
    pane.element.remove();
    turn.panes.splice(turn.panes.indexOf(pane), 1);
    answer(turn, pane.drafts);
  });
  pane.note.setAttribute("role", "alert");
  pane.finish("failed", error.message, " ", again);
  if (error.status === 401) askForKey(() => again.click());
}

/** Return the note below an answer, without its speed if a table shows it. */
function noteOf({ finish, figures }, isCompared = false) {
  const share = figures.tokens ? Math.round((100 * figures.drafted) / figures.tokens) : 0;
  const parts = [`${figures.tokens} tokens, ${share ? `${share} %` : "none"} of them drafted`];
  if (!isCompared)
    parts.unshift(
      `${figures.tokens_per_second.toFixed(1)} tokens/s`,
      `${figures.tokens_per_step.toFixed(2)} tokens per step`,
    );
  if (finish === "length") parts.push("cut at the limit");
  return parts.join(" · ");
}

/** Show a button to answer the other way, or the comparison of both answers. */
function showMore(turn) {
  const complete = turn.panes.filter((pane) => pane.end);
  if (complete.length === 2) {
    for (const pane of complete) pane.note.textContent = noteOf(pane.end, true);
    turn.more.replaceChildren(...comparison(complete));
  } else if (complete.length === 1 && turn.panes.length === 1) {
    const drafts = !complete[0].drafts;
    const text = `Answer again ${WAYS[drafts].toLowerCase()}`;
    turn.more.replaceChildren(button(text, () => answer(turn, drafts)));
  } else turn.more.replaceChildren();
}

function comparison(panes) {
  const sorted = panes.toSorted((one, other) => other.drafts - one.drafts);
  const [drafted, plain] = sorted.map((pane) => pane.end.figures.tokens_per_second);
  const fastest = Math.max(drafted, plain);
  const head = make("tr", "");
  for (const name of ["", "tokens/s", "tokens per step", "steps", "seconds"]) {
    const cell = make("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const rows = sorted.map((pane) => figuresRow(pane, fastest));
  const table = make("table", "figures", make("thead", "", head), make("tbody", "", ...rows));
  return [table, make("p", "verdict", `${speedVerdict(drafted, plain)} ${textVerdict(panes)}`)];
}

function figuresRow({ drafts, end: { figures } }, fastest) {
  const name = make("th", "", WAYS[drafts]);
  name.scope = "row";
  const bar = make("span", "bar");
  bar.style.width = `${fastest ? (100 * figures.tokens_per_second) / fastest : 0}%`;
  const speed = make("td", "speed", make("span", "number", figures.tokens_per_second.toFixed(1)));
  speed.append(make("span", "track", bar));
  const row = make("tr", drafts ? "drafted" : "plain", name, speed);
  for (const text of [figures.tokens_per_step.toFixed(2), figures.steps, figures.seconds.toFixed(2)])
    row.append(make("td", "", String(text)));
  return row;
}

function speedVerdict(drafted, plain) {
  if (!drafted || !plain) return "The answer is too short to be timed.";
  return `Decoding with drafts was ${(drafted / plain).toFixed(2)} times as fast.`;
}

function textVerdict([one, other]) {
  const [first, second] = [one.tokens.text, other.tokens.text];
  if (first === second) return "Both texts are the same.";
  let place = 0;
  while (first[place] === second[place]) place += 1;
  return `The texts differ from character ${place + 1} on.`;
}

/** Return the request fields of the settings; the server's defaults apply to empty ones. */
function optionsNow() {
  const options = { seed: crypto.getRandomValues(new Uint32Array(1))[0] };
  const temperature = at("temperature").value.trim();
  const maxTokens = at("max-tokens").value.trim();
  if (temperature) options.temperature = Number(temperature);
  if (maxTokens) options.max_tokens = Number(maxTokens);
  return options;
}

function messagesBefore() {
  const system = at("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const text = turn.panes[0]?.tokens.text;
    if (!text) continue; // a question without an answer is left out
    messages.push(turn.messages.at(-1), { role: "assistant", content: text });
  }
  return messages;
}

function ask(question) {
  const messages = [...messagesBefore(), { role: "user", content: question }];
  const turn = { messages, options: optionsNow(), panes: [] };
  turn.row = make("div", "panes");
  turn.more = make("div", "more");
  turns.push(turn);
  at("welcome").hidden = true;
  at("turns").append(make("article", "turn", make("p", "question", question), turn.row, turn.more));
  at("chat").scrollTop = at("chat").scrollHeight;
  answer(turn, document.querySelector("[name=drafts]:checked").value === "with");
}

function showRunning() {
  document.body.classList.toggle("is-running", running !== null);
  at("stop").hidden = running === null;
  at("send").hidden = running !== null;
  for (const each of document.querySelectorAll(".turn button")) each.disabled = running !== null;
  showWhetherAskable();
}

function showWhetherAskable() {
  at("send").disabled = running !== null || !at("question").value.trim();
}

function fitQuestion() {
  const field = at("question");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 200)}px`;
  showWhetherAskable();
}

function submit() {
  const question = at("question").value.trim();
  if (!question || running) return;
  at("question").value = "";
  fitQuestion();
  ask(question);
}

function newChat() {
  running?.abort();
  turns.length = 0;
  at("turns").replaceChildren();
  at("welcome").hidden = false;
  at("question").focus();
}

/** Ask for the API key, and call `then` once there is one. */
function askForKey(then) {
  const dialog = at("key-dialog");
  at("key").value = "";
  dialog.returnValue = "";
  dialog.onclose = () => {
    const key = at("key").value.trim();
    at("key").value = "";
    if (dialog.returnValue !== "save" || !key) return;
    apiKey.set(key);
    then();
  };
  if (!dialog.open) dialog.showModal();
}

async function showModel() {
  try {
    at("model").textContent = await modelName();
    at("change-key").hidden = !apiKey.value;
  } catch (error) {
    if (error.status === 401) askForKey(showModel);
    else at("model").textContent = error.message;
  }
}

function toggleSettings() {
  const isHidden = (at("settings").hidden = !at("settings").hidden);
  at("settings-button").setAttribute("aria-expanded", String(!isHidden));
  if (!isHidden) at("system").focus();
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
at("question").addEventListener("input", fitQuestion);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("key-dialog").open) running?.abort();
});
at("stop").addEventListener("click", () => running?.abort());
at("new-chat").addEventListener("click", newChat);
at("settings-button").addEventListener("click", toggleSettings);
at("change-key").addEventListener("click", () => askForKey(showModel));
at("key-cancel").addEventListener("click", () => at("key-dialog").close(""));
at("marks").addEventListener("change", (event) => {
  document.body.classList.toggle("shows-marks", event.target.checked);
});
for (const example of document.querySelectorAll(".examples button"))
  example.addEventListener("click", () => running || ask(example.textContent));

apiKey.read();
showModel();
