'use strict'
// For `require`: the one source, howler.js, with its export turned into what `require` returns.

const { readFileSync } = require('node:fs')
const path = require('node:path')

const file = path.join(__dirname, 'howler.js')
const source = readFileSync(file, 'utf8').replace(/^export default class /m, 'module.exports = class ')
// Not `vm`, since the globals must be those of the caller, which test runners replace.
new Function('module', `${source}\n//# sourceURL=${file}`)(module) // eslint-disable-line no-new-func
module.exports.default = module.exports
