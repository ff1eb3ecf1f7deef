// Addresses behind the #: "#/activity?state=unknown" is page "activity" with a query. The server never sees them.
import { useEffect, useState } from "./html.js";

/** The current address as {path: ["activity"], query: {state: "unknown"}}. */
export function readRoute(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { path: parts, query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Return the address of a page; empty values of the query are left out. */
export function link(parts, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const path = [].concat(parts).map(encodeURIComponent).join("/");
  return `#/${path}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
}

export const go = (parts, query) => {
  location.hash = link(parts, query);
};

/** Change the query of the current page; the back button undoes it. */
export function setQuery(changes) {
  const { path, query } = readRoute();
  go(path, { ...query, ...changes });
}

export function useRoute() {
  const [route, setRoute] = useState(readRoute);
  useEffect(() => {
    const changed = () => setRoute(readRoute());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
