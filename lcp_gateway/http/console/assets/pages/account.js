// Account: who is signed in, signing out everywhere, the name, the end of the account.
import { patch, remove, useLoad } from "../api.js";
import { html, useState } from "../html.js";
import { Confirm, Field, FormError, Go, Head, Panel, Sum, Time, useForm } from "../ui.js";

export default function Account({ ctx }) {
  const { session } = ctx;
  const account = useLoad(session.account ? "/api/account" : null);
  const [ended, setEnded] = useState(false);
  const [isDeleting, setDeleting] = useState(false);
  const mayChange = session.account && session.scopes.includes("account");
  const everywhere = async () => {
    await remove("/api/sessions");
    location.reload();
  };
  const destroy = async (typed) => {
    await remove("/api/account", { forfeit_msat: account.data.balance_msat }, { headers: { "X-Lcp-Confirm": typed } });
    setEnded(true);
    location.reload();
  };
  return html`
    <${Head} title="Account" />
    <div class="stack">
      <${Panel} title="This session">
        <dl class="facts">
          ${session.account && html`<dt>Account</dt><dd><bdi>${account.data?.name ?? session.account.name}</bdi></dd>`}
          <dt>Signed in with</dt><dd>${session.key?.name ?? "a key"}${session.key?.prefix && html` <code>${session.key.prefix}…</code>`}</dd>
          <dt>May</dt><dd>${(session.scopes ?? []).join(", ")}</dd>
          ${session.created_at && html`<dt>Since</dt><dd><${Time} at=${session.created_at} /></dd>`}
          ${session.expires_at && html`<dt>Ends</dt><dd><${Time} at=${session.expires_at} />, or earlier without use</dd>`}
        </dl>
        <div class="buttons"><button onClick=${everywhere}>Sign out everywhere</button></div>
      <//>
      ${mayChange && account.data && html`<${Rename} account=${account.data} reload=${account.reload} />`}
      ${mayChange && account.data && html`<${Panel} title="Delete the account" note="Its keys stop working at once, and its balance is gone. Lightning has no way back: withdraw or use what is left first.">
        <div class="buttons"><button class="danger" onClick=${() => setDeleting(true)}>Delete…</button></div>
      <//>`}
    </div>
    ${isDeleting && !ended && html`<${Confirm} title="Delete this account?" word=${account.data.id.slice(-6)} button="Delete it for good" act=${destroy} onClose=${() => setDeleting(false)}>
      <p>${account.data.balance_msat > 0 ? html`You give up <strong><${Sum} msat=${account.data.balance_msat} /></strong>.` : "The balance is empty."} This cannot be undone.</p>
    <//>`}
    <p class="note"><${Go} to="keys">Keys<//> are made and revoked on their own page.</p>`;
}

function Rename({ account, reload }) {
  const [name, setName] = useState(account.name);
  const form = useForm(async () => {
    await patch("/api/account", { name: name.trim() });
    reload();
  });
  return html`<${Panel} title="Name"><form onSubmit=${form.onSubmit}>
    <${Field} label="Name" required maxlength="100" error=${form.errorOf("name")} value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["name"]} />
    <div class="buttons"><button disabled=${form.busy || name.trim() === account.name}>Rename</button></div>
  </form><//>`;
}
