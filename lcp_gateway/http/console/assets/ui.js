// Small parts that the pages share. Text only: nothing here writes HTML, and no link leads away from this host.
import { html, useEffect, useId, useRef, useState } from "./html.js";
import { localDay, localTime, relative, sat, satParts, shortId, toDate, utcTime, whole } from "./format.js";
import { link } from "./router.js";

/** An amount in sats with exactly three digits after the point, so that a column of them is aligned; msat on hover. `about` says why it is an estimate. */
export function Amount({ msat, unit = false, signed = false, about = "" }) {
  if (msat === null || msat === undefined) return html`<span class="none" title="not known">–</span>`;
  const { sign, sats, rest } = satParts(msat);
  const plus = signed && !sign && BigInt(msat) !== 0n ? "+" : sign;
  return html`<span class="amount" title="${about && `about, ${about}: `}${whole(BigInt(msat))} msat"
    >${about && "≈ "}${plus}${sats}<span class="rest">.${rest}</span>${unit && html`<span class="unit"> sat</span>`}</span
  >`;
}

/** A large amount, without digits that say nothing. */
export const Sum = ({ msat, about = "" }) =>
  msat === null || msat === undefined
    ? html`<span class="none">not known</span>`
    : html`<span class="amount" title="${about && `about, ${about}: `}${whole(BigInt(msat))} msat">${about && "≈ "}${sat(msat)}<span class="unit"> sat</span></span>`;

/** A time in the reader's zone; UTC on hover. */
export function Time({ at, day = false, near = false }) {
  const date = toDate(at);
  if (!date) return html`<span class="none">–</span>`;
  return html`<time datetime=${date.toISOString()} title=${utcTime(date)}>${day ? localDay(date) : near ? relative(date) : localTime(date)}</time>`;
}

/** A long id, shortened; the whole of it on hover and for a screen reader. */
export const Id = ({ id, head, tail }) => (id ? html`<code class="id" title=${id}>${shortId(id, head, tail)}</code>` : html`<span class="none">–</span>`);

const STATES = {
  delivered: ["good", "delivered"],
  settled: ["busy", "paid, being delivered"],
  paying: ["busy", "being paid"],
  quoted: ["busy", "quoted"],
  unknown: ["warn", "payment unknown"],
  undelivered: ["bad", "paid, not delivered"],
  not_paid: ["none", "not paid"],
  refused: ["none", "refused"],
  expired: ["none", "expired"],
};
export const STATE_WORDS = Object.fromEntries(Object.entries(STATES).map(([state, [, words]]) => [state, words]));

/** A state of a purchase: colour and words, never colour alone. */
export function State({ state }) {
  const [tone, words] = STATES[state] ?? ["none", String(state)];
  return html`<span class="state ${tone}">${words}</span>`;
}

export const Tone = ({ tone, children }) => html`<span class="state ${tone}">${children}</span>`;
export const Badge = ({ children, title, tone = "" }) => html`<span class="badge ${tone}" title=${title}>${children}</span>`;

/** A page's heading, with what can be done on it. */
export const Head = ({ title, note, children }) => html`<div class="head">
  <div><h1 tabindex="-1">${title}</h1>${note && html`<p class="note">${note}</p>`}</div>
  ${children && html`<div class="actions">${children}</div>`}
</div>`;

export function Panel({ title, note, actions, children, wide = false, tone = "" }) {
  const id = useId();
  return html`<section class="panel ${wide ? "wide" : ""} ${tone}" aria-labelledby=${title ? id : null}>
    ${title && html`<div class="panel-head"><h2 id=${id}>${title}</h2>${actions && html`<div class="actions">${actions}</div>`}</div>`}
    ${note && html`<p class="note">${note}</p>`}
    ${children}
  </section>`;
}

/** One figure with its name. */
export const Figure = ({ name, children, note }) => html`<div class="figure"><dt>${name}</dt><dd>${children}${note && html`<small>${note}</small>`}</dd></div>`;

/** Used of a limit; a warning from 80 % on. */
export function Meter({ name, used, limit, resetsAt }) {
  const share = limit ? Math.min(1, used / limit) : 0;
  const tone = share >= 1 ? "bad" : share >= 0.8 ? "warn" : "";
  const date = toDate(resetsAt);
  const words = share >= 1 ? "used up" : share >= 0.8 ? `${Math.floor(share * 100)} % used` : "";
  return html`<div class="meter ${tone}">
    <div class="meter-line"><span>${name}</span><span><${Amount} msat=${used} /> of <${Sum} msat=${limit} /></span></div>
    <progress max="1" value=${share} aria-label="${name}: ${Math.round(share * 100)} % used"></progress>
    <div class="meter-line note"><span>${words}</span>${date && html`<span title=${utcTime(date)}>resets ${relative(date)}</span>`}</div>
  </div>`;
}

/** What went wrong and what to do, with a button to try again. */
export function Problem({ error, reload, stale = false }) {
  if (!error) return null;
  const again = error.passes ? " This page tries again by itself." : "";
  return html`<div class="problem" role="alert">
    <p><strong>${stale ? "These figures may be old. " : ""}</strong>${error.message}${again}</p>
    ${reload && html`<button class="small" onClick=${reload}>Try again</button>`}
  </div>`;
}

export const Empty = ({ title, children }) => html`<div class="empty"><p class="empty-title">${title}</p>${children}</div>`;
export const Loading = () => html`<p class="loading" role="status">Loading…</p>`;

/** Show what useLoad returned: loading, an error, or `children(data)`, which stays while an error lasts. */
export function Loaded({ from, children }) {
  if (from.data === null && from.error) return html`<${Problem} error=${from.error} reload=${from.reload} />`;
  if (from.data === null) return html`<${Loading} />`;
  return html`<${Problem} error=${from.error} reload=${from.reload} stale /> ${children(from.data)}`;
}

/**
 * A table. Columns: {name, cell(row), right, hide: "phone", link(row)}. `empty` is shown without rows; `caption` names it for a screen reader.
 */
export function Table({ caption, columns, rows, empty, rowKey = (row) => row.id, more, busy }) {
  if (!rows.length && empty) return empty;
  return html`<div class="scroll" role="region" aria-label="${caption}, table" tabindex="0">
      <table>
        <caption class="unseen">${caption}</caption>
        <thead>
          <tr>
            ${columns.map((column) => html`<th key=${column.name} scope="col" class=${classes(column)}>${column.name || html`<span class="unseen">Actions</span>`}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            (row, number) => html`<tr key=${rowKey(row) ?? number}>
              ${columns.map((column) => html`<td key=${column.name} class=${classes(column)}>${column.cell(row)}</td>`)}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
    ${more && html`<p class="more"><button onClick=${more} disabled=${busy}>${busy ? "Loading…" : "Show older"}</button></p>`}`;
}

const classes = ({ right, hide, clip }) => [right && "right", hide && `hide-${hide}`, clip && "clip"].filter(Boolean).join(" ") || null;

/** A labelled input with its error below it. */
export function Field({ label, note, error, children, name, ...rest }) {
  const id = useId();
  const describedBy = [note && `${id}-note`, error && `${id}-error`].filter(Boolean).join(" ") || null;
  const shared = { id, name, "aria-describedby": describedBy, "aria-invalid": error ? "true" : null };
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children ? children(shared) : html`<input type="text" autocomplete="off" ...${rest} ...${shared} />`}
    ${note && html`<p class="note" id="${id}-note">${note}</p>`}
    ${error && html`<p class="field-error" id="${id}-error">${error}</p>`}
  </div>`;
}

export const Select = ({ label, value, options, onPick, note, error, name }) => html`<${Field} label=${label} note=${note} error=${error} name=${name}>
  ${(shared) => html`<select ...${shared} value=${value} onChange=${(event) => onPick(event.currentTarget.value)}>
    ${options.map(([key, words]) => html`<option key=${key} value=${key} selected=${key === value}>${words}</option>`)}
  </select>`}
<//>`;

/**
 * Copy a text. `navigator.clipboard` is missing on plain http between computers: then the text is selected instead.
 */
export function Copy({ text, label = "Copy", primary = false }) {
  const [said, setSaid] = useState("");
  const button = useRef();
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setSaid("Copied");
    } catch {
      const shown = button.current.closest(".copyable")?.querySelector("[data-copy]");
      if (shown) getSelection().selectAllChildren(shown);
      setSaid("Selected: press Ctrl+C");
    }
  };
  useEffect(() => {
    if (!said) return undefined;
    const timer = setTimeout(() => setSaid(""), 3000);
    return () => clearTimeout(timer);
  }, [said]);
  return html`<button type="button" ref=${button} class=${primary ? "primary" : "small"} onClick=${copy}>${said || label}</button>
    <span class="unseen" role="status">${said}</span>`;
}

/** A text to copy, in full. */
export const Copyable = ({ text, label, name }) => html`<div class="copyable">
  <code data-copy tabindex="0" role="textbox" aria-readonly="true" aria-label=${name ?? label}>${text}</code><${Copy} text=${text} label=${label} />
</div>`;

/** Code in several languages, one shown at a time. `tabs` is a list of [name, text]. */
export function Snippets({ tabs, name = "Example" }) {
  const [at, setAt] = useState(0);
  const id = useId();
  const shown = tabs[Math.min(at, tabs.length - 1)];
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const next = (at + by + tabs.length) % tabs.length;
    setAt(next);
    event.currentTarget.parentElement.children[next].focus();
  };
  return html`<div class="snippets copyable">
    <div class="snippet-head">
      <div role="tablist" aria-label=${name}>
        ${tabs.map(
          ([title], number) => html`<button key=${title} type="button" role="tab" id="${id}-${number}" aria-controls="${id}-panel"
            aria-selected=${String(number === at)} tabindex=${number === at ? 0 : -1} onClick=${() => setAt(number)} onKeyDown=${step}>${title}</button>`,
        )}
      </div>
      <${Copy} text=${shown[1]} />
    </div>
    <pre role="tabpanel" id="${id}-panel" aria-labelledby="${id}-${at}" tabindex="0"><code data-copy>${shown[1]}</code></pre>
  </div>`;
}

/** A modal dialog. It closes with Escape unless `stays`; the focus goes back to where it was. */
export function Dialog({ title, onClose, stays = false, children, wide = false }) {
  const dialog = useRef();
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  const cancel = (event) => {
    event.preventDefault();
    if (!stays) onClose();
  };
  // Chromium closes a dialog at the second Escape whatever its cancel event was told.
  const key = (event) => stays && event.key === "Escape" && event.preventDefault();
  return html`<dialog ref=${dialog} class=${wide ? "wide" : null} aria-labelledby=${id} onCancel=${cancel} onKeyDown=${key}>
    <div class="panel-head"><h2 id=${id}>${title}</h2>
      ${!stays && html`<button type="button" class="close" aria-label="Close" onClick=${onClose}>✕</button>`}</div>
    ${children}
  </dialog>`;
}

/** A form that sends once at a time and shows its error: at the field it names, else above the button. */
export function useForm(submit) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const running = useRef(false);
  const onSubmit = async (event) => {
    event.preventDefault();
    if (running.current) return;
    running.current = true;
    setBusy(true);
    setError(null);
    try {
      await submit();
    } catch (failed) {
      setError(failed);
    }
    running.current = false;
    setBusy(false);
  };
  return { busy, error, onSubmit, setError, errorOf: (...params) => (error?.param && params.includes(error.param) ? error.message : null) };
}

export const FormError = ({ form, fields = [] }) =>
  form.error && !fields.includes(form.error.param) ? html`<p class="field-error" role="alert">${form.error.message}</p>` : null;

/** Ask for a typed word before something that cannot be undone. `act` returns a promise. */
export function Confirm({ title, children, word, button, act, onClose }) {
  const [typed, setTyped] = useState("");
  const form = useForm(async () => {
    await act(typed.trim());
    onClose();
  });
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${form.onSubmit}>
      ${children}
      <${Field} label=${html`Type <strong>${word}</strong> to confirm`} value=${typed} autofocus spellcheck=${false} onInput=${(event) => setTyped(event.currentTarget.value)} />
      <${FormError} form=${form} />
      <div class="buttons">
        <button type="button" onClick=${onClose}>Cancel</button>
        <button class="danger" disabled=${typed.trim() !== word || form.busy}>${button}</button>
      </div>
    </form>
  <//>`;
}

/** A link to a page of the console. */
export const Go = ({ to, query, children, ...rest }) => html`<a href=${link(to, query)} ...${rest}>${children}</a>`;

/** A name that others chose: text, bounded, each direction kept to itself. */
export const Name = ({ children }) => html`<bdi class="name" title=${String(children ?? "").length > 48 ? children : null}>${children}</bdi>`;
