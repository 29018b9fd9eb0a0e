//! The manual, one page a subject. The same pages are Markdown files in `src/manual` of the repository.
//!
//! | page | reader |
//! |---|---|
//! | [Quick start](quick_start) | everybody, first |
//! | [JavaScript client](javascript_client), [PouchDB](pouchdb) | authors of apps |
//! | [Protocol `howler.v1`](howler_v1), [Socket.IO](socket_io) | authors of clients |
//! | [Moving from the Node.js server](migrating) | users of version 1 |
//! | [Deploying](deploying), [Capacity](capacity) | operators |
//! | [How it works](how_it_works), [Benchmark](benchmark) | contributors |
//! | [Changes](changes) | everybody, before an update |

/// Declares the pages. The links of a page name files, for readers of the repository. In rustdoc the link
/// definitions in front take precedence and lead to modules.
macro_rules! pages {
    ($($name:ident $file:literal)*) => {
        $(
            #[doc = "[quick-start]: crate::manual::quick_start"]
            #[doc = "[javascript-client]: crate::manual::javascript_client"]
            #[doc = "[pouchdb]: crate::manual::pouchdb"]
            #[doc = "[howler-v1]: crate::manual::howler_v1"]
            #[doc = "[socket-io]: crate::manual::socket_io"]
            #[doc = "[migrating]: crate::manual::migrating"]
            #[doc = "[deploying]: crate::manual::deploying"]
            #[doc = "[capacity]: crate::manual::capacity"]
            #[doc = "[how-it-works]: crate::manual::how_it_works"]
            #[doc = "[benchmark]: crate::manual::benchmark"]
            #[doc = "[changes]: crate::manual::changes"]
            #[doc = ""]
            #[doc = include_str!($file)]
            pub mod $name {}
        )*
    };
}

pages! {
    quick_start "quick-start.md"
    javascript_client "javascript-client.md"
    pouchdb "pouchdb.md"
    howler_v1 "howler-v1.md"
    socket_io "socket-io.md"
    migrating "migrating.md"
    deploying "deploying.md"
    capacity "capacity.md"
    how_it_works "how-it-works.md"
    benchmark "benchmark.md"
    changes "changes.md"
}
