// Client of the server's API: requests, streams of server-sent events, and readable errors.

import { showWarnings } from "./ui.js";

export const key = { // the API key, for this browser tab only
  get value() { return sessionStorage.getItem("key") || ""; },
  set value(text) { sessionStorage.setItem("key", text); },
};

function headers() {
  return { "Content-Type": "application/json", ...(key.value ? { Authorization: `Bearer ${key.value}` } : {}) };
}

async function check(response) {
  if (response.ok) return response;
  if (response.status === 401) throw new Error("This server requires an API key. Enter yours with the button “API key” at the top.");
  let message = `The server answered with status ${response.status} ${response.statusText}.`;
  try { message = (await response.json()).error.message; } catch { /* not an error in OpenAI's format */ }
  const seconds = response.headers.get("Retry-After");
  throw new Error(seconds ? `${message} Try again in ${seconds} s.` : message);
}

async function send(path, options) {
  try { return await check(await fetch(path, options)); } catch (error) {
    if (error instanceof TypeError) throw new Error("The server can't be reached. Check that it is running.");
    throw error;
  }
}

export async function models() {
  return (await (await send("/v1/models", { headers: headers() })).json()).data;
}

export async function ask(path, body, signal) {
  const options = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  const answer = await (await send(path, options)).json();
  showWarnings(answer.warnings);
  return answer;
}

// Calls onChunk(chunk) for every event of a stream.
export async function stream(path, body, onChunk, signal) {
  const options = { method: "POST", headers: headers(), body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await send(path, options);
  showWarnings(null);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Error("The connection ended before the text was complete.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.warnings) showWarnings(chunk.warnings);
      if (chunk.error) throw new Error(chunk.error.message);
      onChunk(chunk);
    }
  }
}
