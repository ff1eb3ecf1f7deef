// Snippets that work when they are pasted, for a base URL, a model and a key.

/** Return [name, text] pairs. `key` null: the gateway needs none. */
export function snippetsFor({ baseUrl, model, key, endpoints = null }) {
  const given = key ?? "not-needed";
  if (endpoints && !endpoints.includes("chat") && endpoints.includes("embeddings")) return embeddings(baseUrl, model, key, given);
  const header = key === null ? "" : ` \\\n  -H "Authorization: Bearer ${key}"`;
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "Say hello." }] });
  return [
    ["curl", `curl ${baseUrl}/chat/completions${header} \\\n  -H "Content-Type: application/json" \\\n  -d ${quote(body)}`],
    [
      "Python",
      `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${JSON.stringify(given)})
chat = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=[{"role": "user", "content": "Say hello."}],
)
print(chat.choices[0].message.content)`,
    ],
    [
      "JavaScript",
      `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${JSON.stringify(baseUrl)}, apiKey: ${JSON.stringify(given)} });
const chat = await client.chat.completions.create({
  model: ${JSON.stringify(model)},
  messages: [{ role: "user", content: "Say hello." }],
});
console.log(chat.choices[0].message.content);`,
    ],
    ["Environment", `export OPENAI_BASE_URL=${shell(baseUrl)}\nexport OPENAI_API_KEY=${shell(given)}`],
  ];
}

function embeddings(baseUrl, model, key, given) {
  const header = key === null ? "" : ` \\\n  -H "Authorization: Bearer ${key}"`;
  return [
    ["curl", `curl ${baseUrl}/embeddings${header} \\\n  -H "Content-Type: application/json" \\\n  -d ${quote(JSON.stringify({ model, input: "hello" }))}`],
    [
      "Python",
      `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(baseUrl)}, api_key=${JSON.stringify(given)})
print(client.embeddings.create(model=${JSON.stringify(model)}, input="hello").data[0].embedding[:4])`,
    ],
  ];
}

/** Quote a text for a POSIX shell: names of models are chosen by others. */
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const shell = (text) => (/^[\w:/.@-]+$/.test(text) ? text : quote(text));
