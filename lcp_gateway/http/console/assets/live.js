// One event stream a browser. A page that holds the lock reads /api/events and passes each event to the others: with a
// stream a page the sixth page would hang, because a browser opens six connections to a host.
const NAME = "lcp-gateway-live";
const TYPES = ["hello", "wallet", "topup", "purchase", "health", "catalog"];
const POLL_MS = 10_000;
const AGAIN_MS = 60_000;

const listeners = new Set();
const watchers = new Set();
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;
let state = "off";
let source = null;
let polling = null;
let again = null;
let leaving = null;
let isLeader = false;

/** Call `listener(type, data)` for each event, and for "resync" when events may have been missed. Returns what ends it. */
export function onLive(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Call `watcher(state)` now and on each change: "off", "live", "waiting" (no connection) or "polling". */
export function onLiveState(watcher) {
  watchers.add(watcher);
  watcher(state);
  return () => watchers.delete(watcher);
}

function hand(type, data) {
  for (const listener of [...listeners]) listener(type, data);
}

function setState(next) {
  if (state === next) return;
  state = next;
  for (const watcher of watchers) watcher(state);
}

function tell(type, data) {
  hand(type, data);
  channel?.postMessage({ type, data });
}

function tellState(next) {
  setState(next);
  channel?.postMessage({ state: next });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function open() {
  close();
  source = new EventSource("/api/events");
  source.onopen = () => {
    tellState("live");
    // What happened before the stream began is not in it.
    tell("resync");
  };
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) {
      tellState("waiting");
      return;
    }
    // Refused: too many streams, or no longer signed in. Reading again finds out which.
    close();
    tellState("polling");
    polling = setInterval(() => tell("resync"), POLL_MS);
    again = setTimeout(open, AGAIN_MS);
    tell("resync");
  };
  for (const type of TYPES) source.addEventListener(type, (event) => tell(type, parse(event.data)));
}

function close() {
  source?.close();
  clearInterval(polling);
  clearTimeout(again);
  source = polling = again = null;
}

if (channel) {
  channel.onmessage = ({ data }) => {
    if (data.ask) {
      if (isLeader) channel.postMessage({ state });
    } else if (data.state) setState(data.state);
    else hand(data.type, data.data);
  };
}

/** Begin: lead, or follow the page that leads. */
export function start() {
  if (leaving) return;
  leaving = new AbortController();
  if (navigator.locks && channel) {
    channel.postMessage({ ask: true });
    const lead = () =>
      new Promise((done) => {
        if (!leaving) return done();
        isLeader = true;
        leaving.signal.addEventListener("abort", done);
        open();
      });
    navigator.locks.request(NAME, { signal: leaving.signal }, lead).catch(() => {});
    return;
  }
  // Plain http on another host than this one has no locks: then only a page that is seen has a stream.
  const follow = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", follow, { signal: leaving.signal });
  follow();
}

/** Have all pages of this browser read again: something changed that no event tells, like the session. */
export const refreshAll = () => tell("resync");

/** End, because the session has. */
export function stop() {
  leaving?.abort();
  leaving = null;
  isLeader = false;
  close();
  setState("off");
}

// A page that is frozen or kept for the back button must not lead. Reloading or coming back begins anew.
addEventListener("pagehide", stop);
addEventListener("pageshow", (event) => event.persisted && location.reload());
