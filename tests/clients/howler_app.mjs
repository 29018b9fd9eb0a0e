// An app that uses the client library and obeys a test, in Node as in a page. Each command is a
// call of the client; the app reports the result and each event. Commands and events are those of
// howler.js beside this file.

/** Returns the commands, each a function of a command's fields. `emit(of, event, fields)` reports an event. */
export function app (Client, emit, WebSocket) {
  const clients = new Map()
  const sessions = new Map()
  const stores = new Map()
  const reported = ['connect', 'ready', 'disconnect', 'resync']

  // Keeps a session under a name, so that a second client finds the session of the first.
  function session (name) {
    if (name === undefined || name === null) return name
    if (!sessions.has(name)) sessions.set(name, { cookie: undefined, calls: [] })
    const kept = sessions.get(name)
    const later = value => new Promise(resolve => setTimeout(() => resolve(value)))
    return {
      get: () => later(kept.cookie),
      set: cookie => { kept.calls.push('set'); kept.cookie = cookie; return later() },
      clear: () => { kept.calls.push('clear'); kept.cookie = undefined; return later() }
    }
  }

  function listen (client, as) {
    for (const event of reported) client.on(event, more => emit(as, event, { at: Date.now(), ...more }))
    client.on('session', cookie => emit(as, 'session', { cookie }))
    client.on('error', error => emit(as, 'error', { at: Date.now(), error: describe(error) }))
    client.on('change', (db, change) => emit(as, 'change', { db, ...change, arguments: Object.keys(change) }))
  }

  function describe (error) {
    return { name: error.name, message: error.message, db: error.db, isError: error instanceof Error }
  }

  // Keeps positions under a name. A page keeps them in its storage, which outlasts the page.
  function store (name) {
    if (globalThis.localStorage) return Client.localPositions(name)
    if (!stores.has(name)) stores.set(name, new Map())
    return stores.get(name)
  }

  function make ({ as, url, session: name, third, positions }) {
    if (third === undefined || (third !== null && typeof third === 'object')) {
      third = { WebSocket, positions: positions && store(positions), ...third }
    }
    try {
      const client = new Client(url, session(name), third)
      clients.set(as, client)
      listen(client, as)
      emit(as, 'made')
    } catch (error) {
      emit(as, 'made', { error: describe(error) })
    }
  }

  return {
    make,

    /** Makes a number of clients with the same credentials and subscriptions, in which `*` becomes the client's name. */
    fleet ({ name, count, url, logIn, dbs, third }) {
      for (let number = 0; number < count; number++) {
        const as = name + number
        make({ as, url, third })
        clients.get(as).subscribe(dbs.map(db => db.replace('*', as)))
        clients.get(as).logIn(...logIn).catch(error => emit(as, 'error', { error: describe(error) }))
      }
    },

    /** Calls a method and reports its result as `settled`. */
    call ({ as, method, arguments: list = [] }) {
      const settled = more => emit(as, 'settled', { to: method, ...more })
      try {
        const returned = clients.get(as)[method](...list)
        if (returned && typeof returned.then === 'function') {
          returned.then(value => settled({ value, promise: true }), error => settled({ error: describe(error) }))
        } else {
          settled({ value: returned === clients.get(as) ? 'this' : returned })
        }
      } catch (error) {
        settled({ error: describe(error) })
      }
    },

    /** Adds listeners that count: with `once`, with `on`, and two that `removeListener` and `off` remove. */
    count ({ as, event }) {
      const client = clients.get(as)
      const counts = { once: 0, on: 0, off: 0, removed: 0 }
      const off = () => { counts.off++ }
      const removed = () => { counts.removed++ }
      client.once(event, () => { counts.once++ })
      client.on(event, off)
      client.on(event, removed)
      client.on(event, () => emit(as, 'counted', { counts: { ...counts, on: ++counts.on } }))
      client.off(event, off)
      client.removeListener(event, removed)
    },

    /** Reports the session kept under a name, and the calls of its methods. */
    session: ({ as, name }) => emit(as, 'session-kept', sessions.get(name)),

    /** Reports that all commands before have been executed. */
    echo: ({ as }) => emit(as, 'echo')
  }
}
