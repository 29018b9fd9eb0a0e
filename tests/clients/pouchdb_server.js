'use strict'
// Runs a PouchDB Server (express-pouchdb) for a test: in memory, with CORS for every origin, and
// with a `_global_changes` database that is written as CouchDB does. A howler that works with it
// depends only on what CouchDB and PouchDB Server have in common.
//
//   node pouchdb_server.js ADMIN PASSWORD USER PASSWORD
//
// Reads commands from stdin and writes events to stdout, each a line of JSON. A request with
// howler's User-Agent is from `howler`, any other from `page`:
//
//   {"of":"pouchdb","event":"ready","port":5984,"version":"…"}
//
//   {"do":"create","db":"garden"}       {"do":"delete","db":"garden"}
//   {"do":"write","db":"garden","doc":{"_id":"a",…}}     writes a new revision after the last one
//   {"do":"read","db":"garden","id":"a"}
//   {"do":"hold"}          holds event documents back…             {"do":"release"}      …and writes them
//   {"do":"events"}                                      returns the revisions of the event documents
//   {"do":"requests"}                                    returns the requests of pages since the last call
//   {"do":"stall"}         delays pulls of pages…        {"do":"resume"}       …until this
//   {"do":"cut"}                                         ends the feed of `howler`, as a crash would
//
//   {"of":"pouchdb","event":"ack","to":"create","data":…}
//   {"of":"pouchdb","event":"ack","to":"read","data":{…}|null}
//   {"of":"pouchdb","event":"ack","to":"requests","data":{"done":["GET /garden/…"],"open":[]}}
//   {"of":"pouchdb","event":"request","by":"page"|"howler","line":"GET /garden/a"}      at the end of a request,
//                                                                                       or at the start of a feed

const readline = require('node:readline')

/** Interval at which event documents are written; 500 ms in CouchDB. */
const TICK_MS = 50

function emit (event, more) {
  process.stdout.write(JSON.stringify({ of: 'pouchdb', event, ...more }) + '\n')
}

function fail (problem) {
  console.error(`tests/clients/pouchdb_server.js: ${problem}`)
  process.exit(1)
}

function library (name) {
  try {
    return require(name)
  } catch (error) {
    fail(`${name} is missing (${error.code}): run tests/clients/install.sh`)
  }
}

// Suppresses the warnings about `new Buffer` in express-pouchdb.
process.noDeprecation = true
const express = library('express')
const expressPouchDB = library('express-pouchdb')
const PouchDB = library('pouchdb-core')
  .plugin(library('pouchdb-adapter-memory'))
  // Unused, but the access checks of express-pouchdb require it.
  .plugin(library('pouchdb-replication'))
  .defaults({})

// Event documents, one for each database and kind of event.

const revisions = new Map()
const watched = new Set()
const due = new Set()
let held = false
let written = Promise.resolve()

function note (kind, db) {
  // CouchDB has no such database as PouchDB Server's own list of databases.
  if (db === 'pouch__all_dbs__' || db === '_global_changes') return
  due.add(`${kind}:${db}`)
  if (!held) setTimeout(writeEvents, TICK_MS)
}

function writeEvents () {
  if (held) return
  const ids = [...due]
  due.clear()
  written = written.then(async () => {
    const database = new PouchDB('_global_changes')
    for (const id of ids) {
      const { rev } = await database.put({ _id: id, _rev: revisions.get(id) })
      revisions.set(id, rev)
    }
  }).catch(error => fail(`an event document: ${error}`))
}

// PouchDB emits `created` for every database that is opened.
function watch (db) {
  if (watched.has(db)) return
  watched.add(db)
  note('created', db)
  new PouchDB(db).changes({ since: 0, live: true })
    .on('change', () => note('updated', db))
    .on('error', error => fail(`the changes of ${db}: ${error}`))
}

// HTTP: a record of the requests, CORS, and PouchDB Server behind both.

const requests = []
const feeds = new Set()
let stalled = null

function record (request, response, next) {
  const by = /^couchdb-howler\//.test(request.headers['user-agent']) ? 'howler' : 'page'
  const seen = { by, line: `${request.method} ${request.url}`, open: true }
  requests.push(seen)
  const say = () => emit('request', { by, line: seen.line })
  if (request.query.feed === 'continuous') say()
  else response.on('close', say)
  response.on('close', () => { seen.open = false })
  if (request.query.feed === 'continuous') feeds.add(request.socket)
  if (by === 'page' && stalled && /\/_changes/.test(request.path)) stalled.push(next)
  else next()
}

function cors (request, response, next) {
  const { origin } = request.headers
  if (!origin) return next()
  response.setHeader('Access-Control-Allow-Origin', origin)
  response.setHeader('Access-Control-Allow-Credentials', 'true')
  if (request.method !== 'OPTIONS') return next()
  response.setHeader('Access-Control-Allow-Methods', 'GET, HEAD, POST, PUT, DELETE')
  response.setHeader('Access-Control-Allow-Headers', 'Authorization, Content-Type')
  response.writeHead(204).end()
}

const commands = {
  async create ({ db }) {
    await new PouchDB(db).info()
  },
  async delete ({ db }) {
    await new PouchDB(db).destroy()
  },
  async write ({ db, doc }) {
    const database = new PouchDB(db)
    const before = await database.get(doc._id).catch(() => ({}))
    return (await database.put({ ...doc, _rev: before._rev })).rev
  },
  read: ({ db, id }) => new PouchDB(db).get(id).catch(() => null),
  async hold () {
    writeEvents()
    await written
    held = true
  },
  async release () {
    held = false
    writeEvents()
    await written
  },
  events: () => Object.fromEntries(revisions),
  stall () {
    stalled = []
  },
  resume () {
    const waiting = stalled
    stalled = null
    for (const next of waiting) next()
  },
  cut () {
    for (const socket of feeds) socket.destroy()
    feeds.clear()
  },
  requests () {
    const pages = requests.filter(({ by }) => by === 'page')
    const done = pages.filter(({ open }) => !open)
    for (const seen of done) requests.splice(requests.indexOf(seen), 1)
    return { done: done.map(({ line }) => line), open: pages.filter(({ open }) => open).map(({ line }) => line) }
  }
}

async function main () {
  const [admin, adminPassword, user, password] = process.argv.slice(2)
  const app = express()
  app.use(record, cors)
  const server = expressPouchDB({
    mode: 'minimumForPouchDB',
    // Adds logins and access control. Compression would delay a feed.
    overrideMode: {
      include: [
        'config-infrastructure', 'logging-infrastructure', 'routes/authentication', 'routes/authorization',
        'routes/session', 'routes/security', 'validation'
      ],
      exclude: ['routes/session-stub', 'compression']
    },
    inMemoryConfig: true,
    logPath: '/dev/null'
  })
  app.use(server)
  await new Promise(resolve => server.couchConfig.set('admins', admin, adminPassword, resolve))
  await server.setPouchDB(PouchDB)
  await new PouchDB('_global_changes').info()
  PouchDB.on('created', watch)
  PouchDB.on('destroyed', db => {
    watched.delete(db)
    note('deleted', db)
  })
  const listening = app.listen(0, '127.0.0.1', async () => {
    const { port } = listening.address()
    const url = `http://127.0.0.1:${port}`
    const authorization = 'Basic ' + Buffer.from(`${admin}:${adminPassword}`).toString('base64')
    // Over HTTP, because its handler replaces the password by a hash.
    const put = async (path, body) => {
      const headers = { Authorization: authorization, 'Content-Type': 'application/json' }
      const answer = await fetch(url + path, { method: 'PUT', headers, body: JSON.stringify(body) })
      if (!answer.ok) fail(`PUT ${path}: ${answer.status} ${await answer.text()}`)
    }
    await put(`/_users/org.couchdb.user:${user}`, { name: user, password, type: 'user', roles: [] })
    await put('/_global_changes/_security', { members: { names: [], roles: ['_admin'] } })
    requests.length = 0
    emit('ready', { port, version: require('express-pouchdb/package.json').version })
  })
}

process.on('unhandledRejection', error => fail(error.stack || error))
main().catch(error => fail(error.stack))

// Run commands one after the other, so that a test can rely on their order.
let before = Promise.resolve()
readline.createInterface({ input: process.stdin })
  .on('line', line => {
    const command = JSON.parse(line)
    before = before.then(() => commands[command.do](command))
      .then(data => emit('ack', { to: command.do, data: data ?? null }))
      .catch(error => fail(`${line}: ${error.stack || error}`))
  })
  .on('close', () => process.exit())
