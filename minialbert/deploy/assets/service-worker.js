const VERSION = "", FILES = []; // the export writes this line
// Keeps the files of this folder, so that the page works without a network; a new export replaces them all.

const OWN = `minialbert ${self.registration.scope} `, NAME = OWN + VERSION;

self.addEventListener("install", (event) => {
  const requests = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(requests)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const isOld = (name) => name.startsWith(OWN) && name !== NAME;
  const tidy = async () => Promise.all((await caches.keys()).filter(isOld).map((name) => caches.delete(name)));
  event.waitUntil(tidy().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const isOwn = event.request.method === "GET" && event.request.url.startsWith(self.registration.scope);
  if (isOwn) event.respondWith(answer(event.request));
});

/** With these headers the page may use threads, whatever the server sends. */
async function answer(request) {
  const found = (await (await caches.open(NAME)).match(request, { ignoreSearch: true })) ?? (await fetch(request));
  if (!found.status) return found; // a redirection, which the browser follows by itself
  const headers = new Headers(found.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
