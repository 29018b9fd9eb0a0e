// The types of what `require` returns: those of howler.d.ts.

import type * as howler from './howler.js' with { 'resolution-mode': 'import' }

declare const Client: typeof howler.default & { default: typeof howler.default }
type Client = howler.default
declare namespace Client {
  export type Change = howler.Change
  export type HowlerError = howler.HowlerError
  export type Session = howler.Session
  export type Positions = howler.Positions
  export type Backoff = howler.Backoff
  export type Options = howler.Options
  export type Events = howler.Events
}
export = Client
