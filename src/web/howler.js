// The client of couchdb-howler. It holds one WebSocket, reports which CouchDB databases changed,
// and reconnects by itself. It runs in browsers and Node, speaks howler.v1, and has no
// dependencies.
//
//     const client = new Client('https://howler.example.com')
//     client.on('change', (db, { kind, position }) => …)
//     await client.subscribe(['db1', 'db2'])
//     await client.logIn('myuser', 'mypwd')
//
// The syntax is that of ES2018, for old bundlers.

const SESSION = 'couchdb-howler-session'
const SESSION_SECONDS = 30 * 24 * 60 * 60
// Long lists are sent in parts, far below the default limit of a message (1 MiB).
const MESSAGE_BYTES = 60000
const NAME_BYTES = 256
// Timers cannot count much further.
const LONGEST_WAIT = 60 * 60 * 1000
// Errors that pass by themselves. After any other rejection only the app can help.
const PASSING = ['ServiceUnavailableError', 'LimitError']

const defaults = {
  heartbeatMilliseconds: 30000,
  // From the first byte to the reply to the login, which may wait 30 s in the server's queue.
  connectMilliseconds: 45000,
  logOutMilliseconds: 5000
}
const defaultBackoff = { initial: 2000, factor: 2, maximum: 30000 }

/** Reports changes of CouchDB databases. `howler.d.ts` describes each method and event as well. */
export default class Client {
  /**
   * Connects by itself if the session holds a cookie; otherwise `logIn` does.
   * `third` is the interval of heartbeats in milliseconds, or an object of options.
   */
  constructor (url, session, third) {
    const options = typeof third === 'number' ? { heartbeatMilliseconds: third } : third || {}
    this._options = Object.assign({}, defaults, given(options))
    this._backoff = Object.assign({}, defaultBackoff, given(options.backoff || {}))
    this._url = address(url)
    this._WebSocket = options.WebSocket || globalThis.WebSocket
    if (typeof this._WebSocket !== 'function') {
      throw failure('TypeError', 'there is no WebSocket here: give one, as in new Client(url, session, { WebSocket })')
    }
    this._session = session || (hasCookies() ? new CookieSession() : new MemorySession())
    this._positions = options.positions || new Map()
    // Calls of the session store follow one another.
    this._sessionBusy = Promise.resolve()

    this._listeners = new Map()
    this._subscriptions = new Map()
    // Replaced by every call that decides whether to be connected. Work of an older one then gives
    // up.
    this._turn = {}
    // Credentials for the next connection; null to stay disconnected.
    this._credentials = null
    // The promise of the pending `logIn`.
    this._pending = null
    // The connection, or the attempt to open one.
    this._link = null
    this._connected = false
    this._failures = 0
    this._retry = null
    this._mustWait = false
    this._hurry = () => this._hasten()
    this._resume()
  }

  /**
   * Logs in by name and password, or by a cookie alone. Resolves with `{ cookie, username }` when
   * subscriptions are in place as well. Rejects with a named error if the server rejects it. While
   * the server cannot be reached it retries, and emits `error` for each failure. A later `logIn`,
   * `logOut` or `stop` rejects it with `AbortError`.
   */
  async logIn (username, password, cookie) {
    const turn = this._turn = {}
    this._end('another login replaced it')
    return new Promise((resolve, reject) => {
      // A listener of `disconnect` may have decided otherwise.
      if (this._turn !== turn) return reject(failure('AbortError', 'another call took its place'))
      this._credentials = cookie ? { cookie } : { username: text(username), password: text(password) }
      this._pending = { resolve, reject }
      this._failures = 0
      this._open()
    })
  }

  /** Logs out, forgets the session, and disconnects. Subscriptions stay for the next `logIn`. */
  async logOut () {
    const turn = this._turn = {}
    // No later session is stored.
    this._credentials = null
    const cleared = this._withSession(session => session.clear())
    // The caller is notified of a failure, but only after the server.
    cleared.catch(() => {})
    this._abort('logged out')
    if (this._connected && turn === this._turn) {
      await new Promise(resolve => {
        const timer = setTimeout(resolve, this._options.logOutMilliseconds)
        this._ask(this._link, { op: 'log-out' }, () => resolve(clearTimeout(timer)))
      })
    }
    if (turn === this._turn) this._end('logged out')
    return cleared
  }

  /**
   * Subscribes to a database or an array of them. Resolves when the server has acknowledged it.
   * Without a connection, or if it breaks meanwhile, it resolves at once: the subscription is kept
   * and sent after the next login.
   */
  async subscribe (db) {
    const names = list(db)
    for (const name of names) {
      if (!this._subscriptions.has(name)) this._subscriptions.set(name, this._subscription(name))
    }
    if (!this._connected) return
    const subscriptions = names.map(name => this._subscriptions.get(name))
    await this._announce(subscriptions)
    for (const { refusal } of subscriptions) if (refusal) throw refusal
  }

  /** Unsubscribes from a database or an array of them: no further `change` is emitted. Positions stay. */
  async unsubscribe (db) {
    const names = list(db).filter(name => {
      const subscription = this._subscriptions.get(name)
      this._subscriptions.delete(name)
      return subscription && this._link && subscription.link === this._link
    })
    const parts = batches(names.map(name => [name, null])).map(part => this._request({
      op: 'unsubscribe', dbs: part.map(([name]) => name)
    }))
    for (const answer of await Promise.all(parts)) {
      if (answer && answer.error) throw failure(answer.error, answer.message)
    }
  }

  /** Disconnects until the next `logIn`. Session and subscriptions stay. */
  stop () {
    this._turn = {}
    this._end('stopped')
  }

  /** Returns whether the client is connected and logged in. */
  isConnected () {
    return this._connected
  }

  /** Adds a listener of an event. */
  on (event, listener) {
    if (typeof listener !== 'function') throw new TypeError('a listener is a function')
    this._listeners.set(event, (this._listeners.get(event) || []).concat({ listener, call: listener }))
    return this
  }

  /** Adds a listener of the next such event only. */
  once (event, listener) {
    if (typeof listener !== 'function') throw new TypeError('a listener is a function')
    const entry = {
      listener,
      call: (...rest) => {
        this._remove(event, entry)
        return listener(...rest)
      }
    }
    this._listeners.set(event, (this._listeners.get(event) || []).concat(entry))
    return this
  }

  /** Removes a listener. */
  off (event, listener) {
    const entries = this._listeners.get(event) || []
    // The one added last, as in Node.
    this._remove(event, entries.slice().reverse().find(entry => entry.listener === listener))
    return this
  }

  /** Same as `on`. */
  addListener (event, listener) {
    return this.on(event, listener)
  }

  /** Same as `off`. */
  removeListener (event, listener) {
    return this.off(event, listener)
  }

  /** Removes all listeners, or those of one event. */
  removeAllListeners (event) {
    if (event === undefined) this._listeners.clear()
    else this._listeners.delete(event)
    return this
  }

  /** Returns the number of listeners of an event. */
  listenerCount (event) {
    return (this._listeners.get(event) || []).length
  }

  /** Calls the listeners of an event. Returns whether there were any. */
  emit (event, ...rest) {
    return this._emit(event, rest).length > 0
  }

  // Returns the results of the listeners. One that throws does not stop the others: its error goes
  // to the runtime, as those of event handlers do.
  _emit (event, rest) {
    const entries = this._listeners.get(event) || []
    if (event === 'error' && entries.length === 0) console.error('couchdb-howler:', rest[0])
    return entries.map(({ call }) => {
      try {
        return call.apply(this, rest)
      } catch (error) {
        setTimeout(() => { throw error })
        return FAILED
      }
    })
  }

  _remove (event, entry) {
    const left = (this._listeners.get(event) || []).filter(other => other !== entry)
    if (left.length > 0) this._listeners.set(event, left)
    else this._listeners.delete(event)
  }

  // ---- connecting

  // Logs in with the cookie of an earlier run.
  async _resume () {
    const turn = this._turn
    try {
      const cookie = await this._withSession(session => session.get())
      if (!cookie || turn !== this._turn) return
      this._credentials = { cookie }
      this._open()
    } catch (error) {
      this.emit('error', error)
    }
  }

  _withSession (use) {
    const done = this._sessionBusy.then(() => use(this._session))
    this._sessionBusy = done.catch(() => {})
    return done
  }

  _open () {
    clearTimeout(this._retry)
    this._retry = null
    this._mustWait = false
    this._listenToPage('addEventListener')
    const link = this._link = { asked: new Map(), lastId: 0, timer: null, heard: false, heardAt: 0, epoch: '' }
    link.timer = setTimeout(() => this._lost(link, 'no answer'), this._options.connectMilliseconds)
    try {
      link.socket = new this._WebSocket(this._url, 'howler.v1')
    } catch (error) {
      // The URL, or the rules of the page: retries cannot help, but the app may.
      return this._lost(link, error.message, true)
    }
    link.socket.onopen = () => {
      if (this._link !== link) return
      this._ask(link, Object.assign({ op: 'log-in' }, this._credentials), answer => this._answered(link, answer))
    }
    link.socket.onmessage = message => {
      if (this._link === link) this._received(link, message.data)
    }
    link.socket.onclose = () => this._lost(link, 'the connection was closed')
    // A close follows. Some implementations throw without a listener.
    link.socket.onerror = () => {}
  }

  _answered (link, answer) {
    if (!answer) return
    if (answer.error) return this._refused(link, answer)
    const { cookie, username } = answer
    // The password is no longer needed.
    if (typeof cookie === 'string') this._keepSession(cookie)
    const { _turn: turn, _pending: pending } = this
    this._connected = true
    this._beat(link)
    this.emit('connect')
    if (this._link !== link) return
    const subscriptions = Array.from(this._subscriptions.values())
    this._announce(subscriptions).then(() => this._sessionBusy).then(() => {
      if (this._link !== link || this._turn !== turn) return
      // Single databases were reported before; these errors concern several.
      const refusals = subscriptions.map(({ refusal }) => refusal).filter(refusal => refusal && refusal.db === undefined)
      for (const refusal of new Set(refusals)) this.emit('error', refusal)
      if (this._link !== link) return
      this._failures = 0
      this.emit('ready')
      // A listener may have ended it; then it was rejected.
      if (this._pending !== pending || !pending) return
      this._pending = null
      pending.resolve({ cookie, username })
    })
  }

  _keepSession (cookie) {
    if (!this._credentials) return
    this._credentials = { cookie }
    this._withSession(session => session.set(cookie)).catch(error => this.emit('error', error))
  }

  async _refused (link, answer) {
    const error = failure(answer.error, answer.message)
    const { _turn: turn, _credentials: credentials } = this
    link.retryAfter = answer.retry_after_ms
    const again = PASSING.includes(error.name) && (credentials.cookie || isTime(link.retryAfter))
    this._close(link)
    if (again) {
      this._wait(link)
      this.emit('error', error)
      return
    }
    if (error.name === 'NotAuthenticatedError' && credentials.cookie) {
      const stored = await this._withSession(session => session.get()).catch(() => undefined)
      // Another tab may have a newer one.
      if (turn === this._turn && !this._pending && stored && stored !== credentials.cookie) {
        this._credentials = { cookie: stored }
        return this._open()
      }
      if (stored === credentials.cookie) await this._withSession(session => session.clear()).catch(() => {})
      if (turn !== this._turn) return
    }
    this._credentials = null
    this._listenToPage('removeEventListener')
    const pending = this._pending
    this._pending = null
    if (pending) pending.reject(error)
    else this.emit('error', error)
  }

  // The connection ended, or could not be opened.
  _lost (link, why, report) {
    if (this._link !== link) return
    const turn = this._turn
    this._close(link)
    if (turn !== this._turn || !this._credentials) return
    this._wait(link)
    if (this._pending || report) this.emit('error', failure('ServiceUnavailableError', `cannot connect, trying again: ${why}`))
  }

  _wait (link) {
    this._mustWait = isTime(link.retryAfter)
    const { initial, factor, maximum } = this._backoff
    const most = Math.min(maximum, initial * Math.pow(factor, this._failures++))
    const delay = this._mustWait ? link.retryAfter : most * (0.1 + 0.9 * Math.random())
    this._retry = setTimeout(() => this._open(), Math.min(delay, LONGEST_WAIT))
  }

  // The browser is online again, or the page visible again after a sleep.
  _hasten () {
    if (globalThis.document && document.visibilityState === 'hidden') return
    if (this._retry && !this._mustWait) this._open()
    else if (this._connected) this._probe(this._link)
  }

  _listenToPage (how) {
    if (typeof globalThis[how] === 'function') globalThis[how]('online', this._hurry)
    if (globalThis.document && document[how]) document[how]('visibilitychange', this._hurry)
  }

  // Ends the connection and all work of it.
  _end (why) {
    clearTimeout(this._retry)
    this._retry = null
    this._credentials = null
    this._listenToPage('removeEventListener')
    this._abort(why)
    if (this._link) this._close(this._link)
  }

  _abort (why) {
    const pending = this._pending
    this._pending = null
    if (pending) pending.reject(failure('AbortError', why))
  }

  _close (link) {
    const connected = this._connected
    this._link = null
    this._connected = false
    clearTimeout(link.timer)
    if (link.socket) {
      link.socket.onopen = link.socket.onmessage = link.socket.onclose = null
      link.socket.close(1000)
    }
    const asked = Array.from(link.asked.values())
    link.asked.clear()
    for (const answer of asked) answer()
    if (connected) this.emit('disconnect')
  }

  // ---- the heartbeat: the client asks after a silence; without an answer the link is dead

  _beat (link) {
    clearTimeout(link.timer)
    const { heartbeatMilliseconds } = this._options
    if (!(heartbeatMilliseconds > 0)) return
    const silent = Date.now() - link.heardAt
    // A clock that was set back proves nothing.
    if (silent >= heartbeatMilliseconds || silent < 0) this._probe(link)
    else link.timer = setTimeout(() => this._beat(link), heartbeatMilliseconds - silent)
  }

  _probe (link) {
    clearTimeout(link.timer)
    const patience = (this._options.heartbeatMilliseconds || defaults.heartbeatMilliseconds) / 2
    const due = Date.now() + 2 * patience
    link.heard = false
    this._ask(link, { op: 'heartbeat' }, () => {})
    link.timer = setTimeout(() => {
      if (link.heard) this._beat(link)
      // A late timer proves nothing: the page slept, so messages may be waiting.
      else if (Date.now() > due) this._probe(link)
      else {
        // `ws` would wait half a minute for the answer to its close.
        if (link.socket.terminate) link.socket.terminate()
        this._lost(link, 'no heartbeat')
      }
    }, patience)
  }

  // ---- messages

  _ask (link, request, answer) {
    const id = ++link.lastId
    link.asked.set(id, answer)
    try {
      link.socket.send(JSON.stringify(Object.assign({ id }, request)))
    } catch (error) {
      // The connection is closing. Its end settles the requests.
    }
  }

  // Resolves with the reply; with nothing if the connection ended before.
  _request (request) {
    return new Promise(resolve => this._ask(this._link, request, resolve))
  }

  _received (link, data) {
    link.heard = true
    link.heardAt = Date.now()
    let message
    try {
      message = Object(JSON.parse(data))
    } catch (error) {
      return
    }
    switch (message.event) {
      case 'hello':
        link.epoch = text(message.epoch)
        return
      case 'change':
        return this._changed(link, message.db, message.kind, message.position)
      case 'resync':
        this.emit('resync', { reason: message.reason })
        // Everything may have changed. Positions from before count no more, also if listeners finish
        // with them later. Those of the reply outlast the loss.
        for (const subscription of this._subscriptions.values()) {
          Object.assign(subscription, { link: null, known: '', done: ++subscription.reported })
        }
        this._announce(Array.from(this._subscriptions.values()))
        return
      case 'session':
        // One that crosses the logout belongs to no session.
        if (typeof message.cookie !== 'string' || !this._credentials) return
        this._keepSession(message.cookie)
        this.emit('session', message.cookie)
        return
      case 'unsubscribed':
        return this._forbid(message.db, message)
      case 'goodbye':
        link.retryAfter = message.retry_after_ms
        return
    }
    const answer = link.asked.get(message.id)
    link.asked.delete(message.id)
    if (answer) answer(message)
  }

  // ---- subscriptions and positions

  _subscription (name) {
    const subscription = {
      name,
      // The connection on which it was sent, and the promise of the reply.
      link: null,
      sent: null,
      // Whether the server ever acknowledged it.
      acknowledged: false,
      // The number of reported changes, and of the last one that was processed.
      reported: 0,
      done: 0,
      // The stored epoch and position. Undefined if the database is new to the store.
      known: undefined
    }
    subscription.loaded = Promise.resolve().then(() => this._positions.get(name))
      // After a failed read the database may have changed.
      .then(known => { subscription.known = known ? String(known) : undefined }, () => { subscription.known = '' })
    return subscription
  }

  // Sends the subscriptions that were not sent on this connection. Resolves when all have replies.
  _announce (subscriptions) {
    const link = this._link
    const fresh = subscriptions.filter(subscription => subscription.link !== link)
    const sent = Promise.all(fresh.map(subscription => subscription.loaded)).then(() => {
      if (this._link !== link) return
      // The positions in a message have one epoch.
      const epochs = new Map()
      for (const subscription of fresh) {
        if (this._subscriptions.get(subscription.name) !== subscription) continue
        const [epoch, position] = parse(subscription.known)
        if (!epochs.has(epoch)) epochs.set(epoch, [])
        epochs.get(epoch).push([subscription.name, position, subscription])
      }
      return Promise.all(Array.from(epochs).map(([epoch, asked]) =>
        Promise.all(batches(asked).map(part => this._subscribe(link, epoch, part)))))
    })
    for (const subscription of fresh) Object.assign(subscription, { link, sent })
    return Promise.all(subscriptions.map(subscription => subscription.sent))
  }

  _subscribe (link, epoch, asked) {
    return new Promise(resolve => {
      this._ask(link, { op: 'subscribe', epoch, dbs: fromEntries(asked) }, answer => {
        // At once, since a change may follow in the same task.
        if (answer) this._subscribed(link, epoch, asked, answer)
        resolve()
      })
    })
  }

  _subscribed (link, epoch, asked, answer) {
    // CouchDB cannot decide on access now. Everything is kept, and retried.
    if (answer.error === PASSING[0]) return this._lost(link, answer.message, true)
    // A server that has just started did not know the epoch when it sent hello.
    if (answer.epoch !== undefined) link.epoch = text(answer.epoch)
    const changed = new Set(answer.changed)
    const refusal = answer.error && failure(answer.error, answer.message)
    for (const [name, given, subscription] of asked) {
      // It may have been unsubscribed meanwhile, and subscribed to again.
      if (this._subscriptions.get(name) !== subscription) continue
      const forbidden = own(answer.errors, name)
      if (refusal) this._drop(name, refusal)
      else if (forbidden) this._forbid(name, forbidden)
      if (refusal || forbidden) continue
      const position = own(answer.dbs, name)
      const seen = subscription.acknowledged || subscription.known !== undefined
      subscription.acknowledged = true
      const same = position && given && epoch === link.epoch
      // Known before, and nothing says that it is still the same.
      if (changed.has(name) || (seen && !same)) this._changed(link, name, undefined, position)
      else if (position) this._remember(name, subscription, link.epoch, position)
    }
  }

  // Reported but not processed yet: the position is stored when the listeners are done.
  _changed (link, name, kind, position) {
    const subscription = this._subscriptions.get(name)
    if (!subscription) return
    const number = ++subscription.reported
    const { epoch } = link
    const results = this._emit('change', [name, { kind, position }])
    const remember = () => {
      if (!position || number < subscription.done) return
      subscription.done = number
      this._remember(name, subscription, epoch, position)
    }
    if (results.length === 0 || results.includes(FAILED)) return
    // The runtime reports a rejected promise of a listener, as it does without this client.
    if (results.some(isPromise)) Promise.all(results).then(remember)
    else remember()
  }

  _remember (name, subscription, epoch, position) {
    const known = `${epoch} ${position}`
    // A position without an epoch cannot be compared.
    if (!epoch || subscription.known === known) return
    subscription.known = known
    // A change that could not be stored is reported again later.
    const store = async () => this._positions.set(name, known)
    store().catch(() => {})
  }

  _forbid (name, { error, message }) {
    if (!this._subscriptions.has(name)) return
    const refusal = failure(text(error) || 'ForbiddenError', message, name)
    this._drop(name, refusal)
    this.emit('error', refusal)
  }

  _drop (name, refusal) {
    this._subscriptions.get(name).refusal = refusal
    this._subscriptions.delete(name)
  }

  /** Creates a store of positions in `localStorage`, for the option `positions`. */
  static localPositions (prefix = 'couchdb-howler-position:') {
    return {
      get: db => localStorage.getItem(prefix + db),
      set: (db, known) => localStorage.setItem(prefix + db, known),
      delete: db => localStorage.removeItem(prefix + db)
    }
  }
}

// Keeps the session as a cookie of the page's own site. Only the page sends it to the server, in
// its login.
class CookieSession {
  get () {
    const cookie = document.cookie.split('; ').find(pair => pair.startsWith(SESSION + '='))
    try {
      return cookie && decodeURIComponent(cookie.slice(SESSION.length + 1))
    } catch (error) {
      return undefined
    }
  }

  set (cookie) {
    this._write(encodeURIComponent(cookie), SESSION_SECONDS)
  }

  clear () {
    this._write('', 0)
  }

  _write (value, seconds) {
    const secure = location.protocol === 'https:' ? '; Secure' : ''
    document.cookie = `${SESSION}=${value}; Path=/; Max-Age=${seconds}; SameSite=Lax${secure}`
  }
}

class MemorySession {
  get () {
    return this._cookie
  }

  set (cookie) {
    this._cookie = cookie
  }

  clear () {
    this._cookie = undefined
  }
}

// Stands for the result of a listener that threw.
const FAILED = {}

// Sandboxed pages throw on access to cookies.
function hasCookies () {
  try {
    return typeof document.cookie === 'string'
  } catch (error) {
    return false
  }
}

function address (url) {
  const parsed = new URL(url, globalThis.document ? document.baseURI : (globalThis.location || {}).href)
  const scheme = { 'http:': 'ws:', 'https:': 'wss:' }[parsed.protocol] || parsed.protocol
  if (!/^wss?:$/.test(scheme)) throw new TypeError('the URL must begin with http, https, ws or wss')
  return `${scheme}//${parsed.host}${parsed.pathname.replace(/\/*$/, '/howler')}${parsed.search}`
}

// Returns the options that are not undefined or null.
function given (options) {
  const present = {}
  for (const name of Object.keys(options)) {
    if (options[name] !== undefined && options[name] !== null) present[name] = options[name]
  }
  return present
}

function list (db) {
  const names = Array.from(new Set(Array.isArray(db) ? db : [db]))
  for (const name of names) {
    if (typeof name !== 'string' || name === '') throw new TypeError('a database name is a string that is not empty')
    if (bytes(name) > NAME_BYTES) throw failure('LimitError', `a database name is longer than ${NAME_BYTES} bytes`, name)
  }
  return names
}

// Splits databases into parts that each fit a message.
function batches (dbs) {
  const parts = []
  let room = 0
  for (const db of dbs) {
    const size = bytes(JSON.stringify([db[0], db[1]]))
    if (size > room) {
      parts.push([])
      room = MESSAGE_BYTES
    }
    parts[parts.length - 1].push(db)
    room -= size
  }
  return parts
}

// Returns the length of a string in UTF-8.
function bytes (string) {
  let length = 0
  for (const character of string) {
    const code = character.codePointAt(0)
    length += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4
  }
  return length
}

// Returns the epoch and the position in a stored text.
function parse (known) {
  const at = known ? known.lastIndexOf(' ') : -1
  return at > 0 ? [known.slice(0, at), known.slice(at + 1)] : [undefined, null]
}

// Names such as `__proto__` are ordinary names.
function fromEntries (entries) {
  const object = Object.create(null)
  for (const [name, value] of entries) object[name] = value
  return object
}

function own (object, name) {
  return object && Object.prototype.hasOwnProperty.call(object, name) ? object[name] : undefined
}

function isPromise (value) {
  return value !== null && typeof value === 'object' && typeof value.then === 'function'
}

function isTime (milliseconds) {
  return typeof milliseconds === 'number' && milliseconds >= 0
}

function text (value) {
  return value === undefined || value === null ? '' : String(value)
}

function failure (name, message, db) {
  const error = new Error(message || name)
  error.name = name
  if (db !== undefined) error.db = db
  return error
}
