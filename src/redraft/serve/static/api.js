// The server's interface: requests, streams of server-sent events, errors in words.

export const key = {
  get value() { return sessionStorage.getItem("key") || ""; },
  set value(text) { sessionStorage.setItem("key", text); },
};

function headers() {
  return { "Content-Type": "application/json", ...(key.value ? { Authorization: `Bearer ${key.value}` } : {}) };
}

async function check(response) {
  if (response.ok) return response;
  if (response.status === 401) throw new Error("This server asks for an API key. Enter yours under “API key”, at the top.");
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* not an error of the interface */ }
  const wait = response.headers.get("Retry-After");
  throw new Error(wait ? `${message}; try again in ${wait} s` : message);
}

// fetch, with the reason in words where nobody answers.
async function reach(path, options) {
  try { return await check(await fetch(path, options)); } catch (error) {
    if (error instanceof TypeError) throw new Error("The server can't be reached. Is it still running?");
    throw error;
  }
}

export async function models() {
  return (await (await reach("/v1/models", { headers: headers() })).json()).data;
}

export async function ask(path, body, signal) {
  const options = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  return (await reach(path, options)).json();
}

// Calls seen(chunk) for every event of a stream.
export async function stream(path, body, seen, signal) {
  const options = { method: "POST", headers: headers(), body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await reach(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Error("The connection broke off before the text was finished.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      seen(chunk);
    }
  }
}
