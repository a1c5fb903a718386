// A Git client of a few verbs on isomorphic-git, for the interop matrix.
import fs from "node:fs";
import git from "isomorphic-git";
import http from "isomorphic-git/http/node";

const [verb, ...words] = process.argv.slice(2);

function unsupported(what) {
  console.error(`isomorphic-git has no ${what}`);
  process.exit(3);
}

async function push(dir, specs) {
  for (const spec of specs) {
    const [from, to] = spec.replace(/^\+/, "").split(":");
    const remove = from === "";
    // It looks the local ref up even for a deletion, so that has to name one that is there.
    const ref = remove ? "main" : from;
    const result = await git.push({
      fs, http, dir, remote: "origin", ref, remoteRef: to, force: spec.startsWith("+"), delete: remove,
    });
    if (!result.ok) throw new Error(JSON.stringify(result.refs));
  }
}

const verbs = {
  clone: ([url, dir]) => git.clone({ fs, http, dir, url }),
  shallow: ([url, dir, depth]) => git.clone({ fs, http, dir, url, depth: Number(depth), singleBranch: true }),
  fetch: ([dir]) => git.fetch({ fs, http, dir, remote: "origin" }),
  push: ([dir, ...specs]) => push(dir, specs),
  atomic: () => unsupported("atomic push"),
  partial: () => unsupported("partial clone"),
};

if (process.env.OBJECT_FORMAT === "sha256") unsupported("SHA-256");
try {
  await (verbs[verb] ?? (() => unsupported(verb)))(words);
} catch (error) {
  console.error(error.code ?? "", error.message);
  process.exit(1);
}
