// Sign-in with a key, and registration. A key is pasted, never typed into an address; it leaves the page with the form.
import { post } from "../api.js";
import { html, useEffect, useState } from "../html.js";
import { Copy, Field, FormError, useForm } from "../ui.js";

export default function Front({ info, onDone }) {
  const [at, setAt] = useState("sign-in");
  const [isKeyShown, setKeyShown] = useState(false);
  useEffect(() => document.querySelector("main input:not([tabindex])")?.focus(), [at]);
  const mayRegister = info.registration !== "closed" && info.auth === "accounts";
  return html`<div class="front"><main>
    <div class="brand">
      <svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="7" fill="var(--accent)" /><path d="M18 5 8 18h6l-1 9 10-13h-6z" fill="var(--on-accent)" /></svg>
      <span>lcp-gateway<small>${info.demo ? "play money" : info.network}</small></span>
    </div>
    ${info.signin === "off"
      ? html`<section class="panel"><h1>The console is off here</h1>
          <p>${info.auth === "none"
            ? "This gateway needs no key and listens on more than this computer, so its console is closed. Open it on the computer itself with the gateway bound to 127.0.0.1, or set api_keys."
            : "Keys are not sent over plain http to another computer. Use https (tls_cert, or a proxy with TLS), or open the console on the computer itself."}</p></section>`
      : at === "sign-in"
        ? html`<${SignIn} info=${info} onDone=${onDone} />`
        : html`<${Register} info=${info} onDone=${onDone} onMade=${() => setKeyShown(true)} />`}
    ${info.signin !== "off" &&
    !isKeyShown &&
    (mayRegister
      ? html`<p>${at === "sign-in" ? "New here? " : "You have a key? "}
          <button class="plain" onClick=${() => setAt(at === "sign-in" ? "register" : "sign-in")}>${at === "sign-in" ? "Register" : "Sign in"}</button></p>`
      : info.auth === "accounts" && html`<p class="note">No key? Ask the operator of this gateway for an account: it is not open for registration.</p>`)}
  </main></div>`;
}

function SignIn({ info, onDone }) {
  const [key, setKey] = useState("");
  const form = useForm(async () => {
    await post("/api/session", { key: key.trim() }, { quiet: true });
    setKey("");
    onDone();
  });
  const note =
    info.auth === "accounts"
      ? "Your sign-in key, another key of your account, or the admin key. It begins with lcpg_ unless the operator chose it."
      : "One of the gateway's api_keys.";
  return html`<form class="panel" onSubmit=${form.onSubmit}>
    <h1>Sign in</h1>
    <input type="text" name="username" autocomplete="username" class="unseen" tabindex="-1" aria-hidden="true" />
    <${Field} label="Key" note=${note} error=${form.error?.message}>
      ${(shared) => html`<input ...${shared} type="password" name="password" autocomplete="current-password" required spellcheck=${false}
        value=${key} onInput=${(event) => setKey(event.currentTarget.value)} />`}
    <//>
    <button class="primary" disabled=${form.busy || !key.trim()}>${form.busy ? "Signing in…" : "Sign in"}</button>
  </form>`;
}

function Register({ info, onDone, onMade }) {
  const [name, setName] = useState("");
  const [invite, setInvite] = useState("");
  const [made, setMade] = useState(null);
  const needsInvite = info.registration === "invite";
  const form = useForm(async () => {
    const body = needsInvite ? { name: name.trim(), invite: invite.trim() } : { name: name.trim() };
    setMade(await post("/api/register", body, { quiet: true }));
    onMade();
  });
  if (made) return html`<${SignInKey} made=${made} onDone=${onDone} />`;
  return html`<form class="panel" onSubmit=${form.onSubmit}>
    <h1>Register</h1>
    <${Field} label="Name" note="How the operator sees your account. It need not be your own." error=${form.errorOf("name")} required maxlength="100"
      value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
    ${needsInvite && html`<${Field} label="Invite" note="The code that the operator of this gateway gave you." error=${form.errorOf("invite")} required spellcheck=${false}
      value=${invite} onInput=${(event) => setInvite(event.currentTarget.value)} />`}
    <${FormError} form=${form} fields=${["name", "invite"]} />
    <button class="primary" disabled=${form.busy}>${form.busy ? "Registering…" : "Register"}</button>
    <p class="note">No password, no mail address. You get a sign-in key, once: keep it.</p>
  </form>`;
}

/** The sign-in key, shown once. The form lets a password manager offer to keep it. */
function SignInKey({ made, onDone }) {
  const submit = (event) => {
    event.preventDefault();
    onDone();
  };
  return html`<form class="panel" onSubmit=${submit}>
    <h1>Keep your sign-in key</h1>
    <p>It is the only way into the account of <bdi>${made.account.name}</bdi>, and it is <strong>not shown again</strong>. It cannot be looked up or reset.</p>
    <input type="text" name="username" autocomplete="username" value=${made.account.name} class="unseen" tabindex="-1" aria-hidden="true" readonly />
    <input type="password" name="password" autocomplete="new-password" value=${made.key.key} class="unseen" tabindex="-1" aria-hidden="true" readonly />
    <div class="copyable"><code data-copy tabindex="0" role="textbox" aria-readonly="true" aria-label="Sign-in key">${made.key.key}</code><${Copy} text=${made.key.key} /></div>
    <button class="primary">I have kept it: go on</button>
  </form>`;
}
