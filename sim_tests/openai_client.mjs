// OpenAI's own client for JavaScript, asked what test_node.py wants to know: {"base", "key", "asks"} on
// stdin, a list of results on stdout.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const { base, key, asks } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: base, apiKey: key, maxRetries: 0, timeout: 120000 });

const text = (choice) => choice.delta?.content ?? choice.message?.content ?? choice.text ?? "";

async function create(where, body, { leave } = {}) {
  const api = where === "chat" ? client.chat.completions : client.completions;
  const got = await api.create(body);
  if (!body.stream)
    return { text: text(got.choices[0]), finish: got.choices[0].finish_reason, usage: got.usage, pieces: 1 };
  const found = { text: "", finish: null, pieces: 0 };
  for await (const part of got) {
    if (part.usage) found.usage = part.usage;
    if (!part.choices.length) continue;
    found.text += text(part.choices[0]);
    found.finish = part.choices[0].finish_reason ?? found.finish;
    found.pieces += 1;
    if (found.pieces === leave) break;      // ends the stream, and with it the request
  }
  return found;
}

async function one({ what, body, options, at_once }) {
  try {
    switch (what) {
      case "models": return (await client.models.list()).data.map((model) => model.id);
      case "model": return (await client.models.retrieve(body)).id;
      case "at once": return await Promise.all(at_once.map(one));
      default: return await create(what, body, options);
    }
  } catch (error) {
    return { error: error.constructor.name, status: error.status, message: error.message };
  }
}

const results = [];
for (const asked of asks) results.push(await one(asked));
console.log(JSON.stringify(results));
