// The types of howler.js, with a description of its methods and events.

/** The details of a change. */
export interface Change {
  /** Kind of the last change, if known. CouchDB may merge several changes, so take it as a hint. */
  kind?: 'created' | 'updated' | 'deleted'
  /** Position of the database, if known: opaque, for comparison only. */
  position?: string
}

/** An error of the server or of this client, identified by its `name`. */
export interface HowlerError extends Error {
  /**
   * - `NotAuthenticatedError`: wrong name or password, or the session has ended. The client waits
   *   for `logIn`.
   * - `AccountLockedError`: CouchDB has locked the name for a while. The client waits for `logIn`.
   * - `LimitError`: too many failed logins from the address, or a request that is too large, too
   *   long or too fast.
   * - `ServiceUnavailableError`: CouchDB or the server cannot be reached.
   * - `ForbiddenError`: the user may not read the database in `db`; its subscription has ended.
   * - `TypeError`: an invalid argument.
   * - `AbortError`: a later `logIn`, `logOut` or `stop` replaced this `logIn`.
   */
  name: string
  /** The database that the error concerns. */
  db?: string
}

/** A store of the session: `get` returns what `set` stored, until `clear`. Each may return a promise. */
export interface Session {
  get (): string | null | undefined | Promise<string | null | undefined>
  set (cookie: string): unknown
  clear (): unknown
}

/** A store of an opaque string for each database: its last processed position. Each may return a promise. */
export interface Positions {
  get (db: string): string | null | undefined | Promise<string | null | undefined>
  set (db: string, known: string): unknown
}

/** The wait before a reconnect: at random, between a tenth of the longest wait and all of it. */
export interface Backoff {
  /** Longest wait before the first attempt, in milliseconds; 2000 by default. */
  initial?: number
  /** Factor of the longest wait after each failure; 2 by default. */
  factor?: number
  /** Limit of the longest wait, in milliseconds; 30000 by default. */
  maximum?: number
}

/** The options of a client. */
export interface Options {
  /**
   * After this long without a message the client sends a heartbeat. Without an answer within half
   * as long again, the connection is dead and the client reconnects. 30000 by default; 0 disables
   * it. Browsers delay the timers of hidden pages by a minute or more: there a dead connection is
   * noticed later, or when the page becomes visible.
   */
  heartbeatMilliseconds?: number
  /** Longest time to connect and log in, in milliseconds; 45000 by default. */
  connectMilliseconds?: number
  /** Longest time that `logOut` waits for the server, in milliseconds; 5000 by default. */
  logOutMilliseconds?: number
  /** The WebSocket class, if there is no global one (Node before version 22): that of `ws`. */
  WebSocket?: new (url: string, protocol: string) => any
  /**
   * A store of positions, such as `Client.localPositions()`. With it, the next start of the app
   * reports changes that happened while the app did not run. By default positions last as long as
   * the client.
   */
  positions?: Positions
  /** The wait before a reconnect. */
  backoff?: Backoff
}

/** The listeners of events, by name. */
export interface Events {
  /** The client is connected and logged in. */
  connect: () => unknown
  /** All subscriptions are in place, and changes that happened meanwhile were reported. */
  ready: () => unknown
  /** The connection ended. The client reconnects, unless `logOut`, `stop` or `logIn` was called. */
  disconnect: () => unknown
  /** A request failed; see `HowlerError`. Without a listener the error goes to the console. */
  error: (error: HowlerError) => unknown
  /**
   * A database changed, now or while there was no connection. The listener may return a promise:
   * the position is stored when all listeners are done. A change whose listener failed, or was
   * interrupted by the end of the app, is reported again when the client connects the next time.
   */
  change: (db: string, change: Change) => unknown
  /** Changes may have been missed; `change` follows for every subscribed database. */
  resync: (resync: { reason?: string }) => unknown
  /** The session was renewed, and is stored already. */
  session: (cookie: string) => unknown
}

/**
 * Reports which CouchDB databases changed.
 *
 * The session of a login is kept: in browsers in a cookie named `couchdb-howler-session` for 30
 * days, in Node as long as the client lasts. A new client with a stored session connects by itself.
 */
export default class Client {
  /**
   * @param url URL of the server: `http`, `https`, `ws` or `wss`, with a path if a proxy serves it
   *   below one
   * @param session store of the session, instead of a cookie
   * @param options options, or only the interval of heartbeats in milliseconds
   */
  constructor (url: string | URL, session?: Session | null, options?: number | Options | null)

  /**
   * Logs in by name and password, or by a cookie alone. Resolves when subscriptions are in place as
   * well. Rejects if the server rejects it. While the server cannot be reached it retries, and
   * emits `error` for each failure, until it succeeds or `logIn`, `logOut` or `stop` is called,
   * which rejects it with `AbortError`.
   */
  logIn (username?: string | null, password?: string | null, cookie?: string | null): Promise<{ cookie: string, username: string }>

  /** Logs out, forgets the session, and disconnects. Subscriptions stay for the next `logIn`. */
  logOut (): Promise<void>

  /**
   * Subscribes to a database, or several. Resolves when the server has acknowledged it, and rejects
   * if the server rejects it. Without a connection, or if it breaks meanwhile, it resolves at once:
   * the subscription is kept and sent after the next login.
   *
   * A database that is new to the client is not reported as changed: bring it up to date yourself.
   * A database with a known position, from before an interruption or from the store, is reported if
   * it has changed since.
   */
  subscribe (db: string | readonly string[]): Promise<void>

  /** Unsubscribes from a database, or several: no further `change` is emitted. Positions stay. */
  unsubscribe (db: string | readonly string[]): Promise<void>

  /** Disconnects until the next `logIn`. Session and subscriptions stay. */
  stop (): void

  /** Returns whether the client is connected and logged in. */
  isConnected (): boolean

  /** Adds a listener of an event. */
  on<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Adds a listener of the next such event only. */
  once<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Removes a listener. */
  off<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Same as `on`. */
  addListener<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Same as `off`. */
  removeListener<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Removes all listeners, or those of one event. */
  removeAllListeners (event?: keyof Events): this
  /** Returns the number of listeners of an event. */
  listenerCount (event: keyof Events): number
  /** Calls the listeners of an event. Returns whether there were any. */
  emit<E extends keyof Events> (event: E, ...rest: Parameters<Events[E]>): boolean

  /**
   * Creates a store of positions in `localStorage`, for the option `positions`.
   *
   * @param prefix prefix of its keys; apps that share an origin and have databases of the same name
   *   need different ones
   */
  static localPositions (prefix?: string): Positions & { delete (db: string): void }
}
