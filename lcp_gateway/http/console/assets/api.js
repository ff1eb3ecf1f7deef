// Requests to the gateway's own routes: JSON in, JSON out, errors in OpenAI's shape.
import { useCallback, useEffect, useRef, useState } from "./html.js";
import { onLive } from "./live.js";

const TIMEOUT_MS = 20_000;
const RETRY_MS = [2_000, 4_000, 8_000, 15_000];
// Events come in bursts: a page reads at most once in this time.
const SETTLE_MS = 400;
// A reading that no person asked for does not keep a session alive.
const BACKGROUND = { "X-Lcp-Background": "1" };

const UNREACHABLE = "The gateway does not answer. It may be restarting, or this computer is offline.";

export class ApiError extends Error {
  /** status 0: the gateway could not be reached. */
  constructor(status, message, { code = null, param = null, retry = false, reasons = [] } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retry, reasons });
  }

  /** Whether the same request may succeed by itself a little later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let signedOut = () => {};
/** Call `handler` when a request is answered with 401. */
export const onSignedOut = (handler) => {
  signedOut = handler;
};

/** Send a request; return the parsed JSON, or null where the answer is empty. Throws ApiError. */
export async function send(method, path, body, { headers = {}, signal, quiet = false } = {}) {
  const sent = { method, headers: { Accept: "application/json", ...headers }, cache: "no-store", credentials: "same-origin" };
  sent.signal = signal ? AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]) : AbortSignal.timeout(TIMEOUT_MS);
  if (method !== "GET") {
    sent.headers["Content-Type"] = "application/json";
    if (body !== undefined) sent.body = JSON.stringify(body);
  }
  let answer;
  let document = null;
  try {
    answer = await fetch(path, sent);
    const text = await answer.text();
    if (text) document = JSON.parse(text);
  } catch (error) {
    if (signal?.aborted) throw error;
    if (answer && error instanceof SyntaxError) document = null;
    else throw new ApiError(0, UNREACHABLE, { code: "unreachable" });
  }
  if (answer.ok) return document;
  if (answer.status === 401 && !quiet) signedOut();
  const { message, code, param } = document?.error ?? {};
  throw new ApiError(answer.status, message ?? `The gateway answered ${answer.status}.`, { code, param, reasons: document?.reasons });
}

export const get = (path, options) => send("GET", path, undefined, options);
export const post = (path, body = {}, options) => send("POST", path, body, options);
export const patch = (path, body, options) => send("PATCH", path, body, options);
export const remove = (path, body, options) => send("DELETE", path, body, options);

/** Return a path with a query; empty values are left out. */
export function withQuery(path, query) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return pairs.length ? `${path}?${new URLSearchParams(pairs)}` : path;
}

/** Read /readyz: {status, reasons, ...}; that the gateway cannot buy is no error of reading. */
export async function readHealth(path, { signal, headers }) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]), headers, cache: "no-store" });
    return { reasons: [], ...(await answer.json()) };
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError(0, UNREACHABLE, { code: "unreachable" });
  }
}

/**
 * Read a path and keep it fresh: again on the named live events, and by itself after an error that passes.
 * `every` reads it again after so many milliseconds, for what no event tells.
 * Returns {data, error, loading, reload}; data stays what it was while an error lasts. A path of null reads nothing.
 */
export function useLoad(path, { live = [], read = get, every = 0 } = {}) {
  const [state, setState] = useState({ data: null, error: null, loading: path !== null, path });
  const current = useRef({});
  const load = useCallback(async (background) => {
    const mine = { abort: new AbortController() };
    current.current.abort?.abort();
    clearTimeout(current.current.timer);
    const failures = current.current.failures ?? 0;
    current.current = mine;
    if (path === null) return;
    try {
      const headers = background ? BACKGROUND : {};
      const data = await read(path, { signal: mine.abort.signal, headers });
      if (current.current === mine) setState({ data, error: null, loading: false, path });
    } catch (error) {
      if (current.current !== mine) return;
      setState((was) => ({ data: was.path === path ? was.data : null, error, loading: false, path }));
      if (error.passes) {
        mine.failures = failures + 1;
        mine.timer = setTimeout(load, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], true);
      }
    }
  }, [path, read]);
  useEffect(() => {
    setState((was) => (was.path === path ? was : { data: null, error: null, loading: path !== null, path }));
    load(false);
    return () => {
      clearTimeout(current.current.timer);
      current.current.abort?.abort();
      current.current = {};
    };
  }, [load]);
  useEffect(() => {
    if (!every) return undefined;
    const timer = setInterval(() => document.hidden || load(true), every);
    return () => clearInterval(timer);
  }, [load, every]);
  const reload = useCallback(() => load(false), [load]);
  useLive(live, () => load(true));
  return { ...(state.path === path ? state : { data: null, error: null, loading: true }), reload };
}

/** Call `handler` once after each burst of the named events; a hidden page waits until it is seen. */
export function useLive(types, handler) {
  const latest = useRef(handler);
  latest.current = handler;
  useEffect(() => {
    if (!types.length) return undefined;
    let timer = null;
    let isDue = false;
    const run = () => {
      timer = null;
      isDue = document.hidden;
      if (!isDue) latest.current();
    };
    const stop = onLive((type) => {
      if (type === "resync" || types.includes(type)) timer ??= setTimeout(run, SETTLE_MS);
    });
    const seen = () => isDue && run();
    document.addEventListener("visibilitychange", seen);
    return () => {
      stop();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [types.join()]);
}

/** Read a list page by page. Returns {items, error, loading, more, reload}; `more` reads the next page, or is null. */
export function usePages(path, options) {
  const first = useLoad(path, options);
  const [rest, setRest] = useState({ items: [], after: undefined, path });
  const [busy, setBusy] = useState(false);
  const [failed, setFailed] = useState(null);
  const mine = rest.path === path ? rest : { items: [], after: undefined };
  const after = mine.after === undefined ? first.data?.after : mine.after;
  const more = async () => {
    setBusy(true);
    setFailed(null);
    try {
      const page = await get(`${path}${path.includes("?") ? "&" : "?"}after=${encodeURIComponent(after)}`);
      setRest({ items: [...mine.items, ...page.data], after: page.after ?? null, path });
    } catch (error) {
      setFailed(error);
    }
    setBusy(false);
  };
  // A fresh first page may overlap with the pages that were read before.
  const seen = new Set();
  const items = [...(first.data?.data ?? []), ...mine.items].filter((item) => {
    const id = item.id ?? item.job_id;
    return id === undefined || (!seen.has(id) && seen.add(id));
  });
  const loaded = first.data !== null;
  return { ...first, items, loaded, error: first.error ?? failed, more: loaded && after ? more : null, busy };
}
