"use strict";

// Requests to the server. URLs are relative, so that the page works below any path.

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const KEY_NAME = "bita-api-key";

const apiKey = {
  value: "",
  read() {
    try {
      this.value = sessionStorage.getItem(KEY_NAME) ?? "";
    } catch {} // without storage the key is only kept by this page
  },
  set(value) {
    this.value = value;
    try {
      sessionStorage.setItem(KEY_NAME, value);
    } catch {}
  },
};

/** Send a request; throws ServerError with the server's message if it is refused. */
async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey.value) {
    // headers only accept bytes
    const bytes = new TextEncoder().encode(apiKey.value);
    headers.Authorization = "Bearer " + String.fromCharCode(...bytes);
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("Cannot reach the server. Check that it is running, then try again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    message = `The server responded with status ${response.status}.`;
  }
  return new ServerError(message, response.status);
}

async function modelName() {
  const models = await (await send("v1/models")).json();
  return models.data[0].id;
}

/**
 * Request an answer, and return its {finish, figures} once it is complete.
 * onTokens: called with lists of {text, drafted} as they arrive.
 */
async function askFor(request, signal, onTokens) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, draft_marks: true }),
    signal,
  });
  let end = null;
  try {
    for await (const event of eventsOf(response)) {
      if (event === "[DONE]") break;
      const data = JSON.parse(event);
      if (data.error) throw new ServerError(data.error.message);
      const [choice] = data.choices;
      if (choice.bita) onTokens(choice.bita.tokens);
      if (choice.finish_reason) end = { finish: choice.finish_reason, figures: choice.bita.figures };
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError("The connection was lost before the answer was complete.");
  }
  if (!end) throw new ServerError("The server ended the answer before it was complete.");
  return end;
}

/** Yield the data of each server-sent event. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) yield event.replace(/^data: /, "");
  }
}
