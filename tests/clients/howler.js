'use strict'
// Drives the client library of src/web in Node, with `ws`, for a test.
//
//   node howler.js [FILE]          FILE is another copy of the library, such as one installed by npm
//
// Reads commands from stdin and writes events to stdout, each a line of JSON. Every command names
// its client in `as`, every event in `of`:
//
//   {"do":"make","as":"a","url":"http://…","session":"name","third":{…}|500,"positions":"name"}
//   {"do":"fleet","name":"c","count":50,"url":"http://…","logIn":["u","p"],"dbs":["db","own-*"],"third":{…}}
//   {"do":"call","as":"a","method":"logIn","arguments":["u","p"]}
//   {"do":"count","as":"a","event":"change"}      {"do":"session","as":"a","name":"name"}      {"do":"echo","as":"a"}
//
//   {"of":"a","event":"made"}       {"of":"a","event":"settled","to":"logIn","value":{…}} or "error":{"name":…}
//   {"of":"a","event":"connect"|"ready"|"disconnect"|"resync","at":…}          {"of":"a","event":"error","error":{…}}
//   {"of":"a","event":"change","db":"db","kind":"updated","position":"…"}      {"of":"a","event":"echo"}
//   {"of":"a","event":"counted","counts":{…}}     {"of":"a","event":"session-kept","cookie":"…","calls":["set"]}

const path = require('node:path')
const readline = require('node:readline')
const { pathToFileURL } = require('node:url')
const WebSocket = require('ws')

const file = process.argv[2] || path.join(__dirname, '../../src/web/howler.js')

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

async function main () {
  const { default: Client } = await import(pathToFileURL(file))
  const { app } = await import('./howler_app.mjs')
  // Node has its own WebSocket since version 22. Clients with a number as the third argument need a
  // global one.
  globalThis.WebSocket = globalThis.WebSocket || WebSocket
  const commands = app(Client, emit, WebSocket)
  readline.createInterface({ input: process.stdin })
    .on('line', line => {
      const command = JSON.parse(line)
      commands[command.do](command)
    })
    .on('close', () => process.exit())
}

main()
