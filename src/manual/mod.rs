//! The manual, one page a subject. The same pages are Markdown files in `src/manual` of the
//! repository.
//!
//! | page | reader |
//! |---|---|
//! | [Quick start](quick_start) | everybody, first |
//! | [JavaScript client](javascript_client), [PouchDB](pouchdb) | authors of apps |
//! | [Protocol `howler.v1`](howler_v1), [Socket.IO](socket_io) | authors of clients |
//! | [Moving from the Node.js server](migrating) | users of version 1 |
//! | [Deploying](deploying), [Configuration](configuration), [Access](access), [Limits](limits), [Health and metrics](health_and_metrics), [Troubleshooting](troubleshooting) | operators |
//! | [How fast](how_fast), [Capacity](capacity), [Benchmark](benchmark) | planners |
//! | [How it works](how_it_works), [Development](development) | contributors |
//! | [Changes](changes) | everybody, before an update |

/// Declares the pages. The links of a page name files, for readers of the repository. In rustdoc
/// the link definitions in front take precedence and lead to modules.
macro_rules! pages {
    ($($name:ident $file:literal)*) => {
        $(
            #[doc = "[access]: crate::manual::access"]
            #[doc = "[access-origins]: crate::manual::access#origins"]
            #[doc = "[benchmark]: crate::manual::benchmark"]
            #[doc = "[capacity]: crate::manual::capacity"]
            #[doc = "[changes]: crate::manual::changes"]
            #[doc = "[configuration]: crate::manual::configuration"]
            #[doc = "[deploying]: crate::manual::deploying"]
            #[doc = "[deploying-several-instances-on-one-machine]: crate::manual::deploying#several-instances-on-one-machine"]
            #[doc = "[deploying-shell-completions-and-man-page]: crate::manual::deploying#shell-completions-and-man-page"]
            #[doc = "[deploying-stopping]: crate::manual::deploying#stopping"]
            #[doc = "[deploying-tls]: crate::manual::deploying#tls"]
            #[doc = "[development]: crate::manual::development"]
            #[doc = "[health-and-metrics]: crate::manual::health_and_metrics"]
            #[doc = "[how-fast]: crate::manual::how_fast"]
            #[doc = "[how-it-works]: crate::manual::how_it_works"]
            #[doc = "[how-it-works-nothing-is-lost]: crate::manual::how_it_works#nothing-is-lost"]
            #[doc = "[howler-v1]: crate::manual::howler_v1"]
            #[doc = "[javascript-client]: crate::manual::javascript_client"]
            #[doc = "[limits]: crate::manual::limits"]
            #[doc = "[limits-descriptors]: crate::manual::limits#descriptors"]
            #[doc = "[limits-failed-logins]: crate::manual::limits#failed-logins"]
            #[doc = "[limits-trust-in-x-forwarded-for]: crate::manual::limits#trust-in-x-forwarded-for"]
            #[doc = "[migrating]: crate::manual::migrating"]
            #[doc = "[pouchdb]: crate::manual::pouchdb"]
            #[doc = "[quick-start]: crate::manual::quick_start"]
            #[doc = "[socket-io]: crate::manual::socket_io"]
            #[doc = "[troubleshooting]: crate::manual::troubleshooting"]
            #[doc = ""]
            #[doc = include_str!($file)]
            #[allow(clippy::doc_markdown, reason = "pages name products and crates as prose does")]
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
    configuration "configuration.md"
    access "access.md"
    limits "limits.md"
    health_and_metrics "health-and-metrics.md"
    troubleshooting "troubleshooting.md"
    how_fast "how-fast.md"
    capacity "capacity.md"
    benchmark "benchmark.md"
    how_it_works "how-it-works.md"
    development "development.md"
    changes "changes.md"
}
