// A Git client of a few verbs on JGit, for the interop matrix.
import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.eclipse.jgit.api.CloneCommand;
import org.eclipse.jgit.api.Git;
import org.eclipse.jgit.lib.NullProgressMonitor;
import org.eclipse.jgit.lib.Repository;
import org.eclipse.jgit.lib.StoredConfig;
import org.eclipse.jgit.transport.FilterSpec;
import org.eclipse.jgit.transport.PushResult;
import org.eclipse.jgit.transport.RefSpec;
import org.eclipse.jgit.transport.RemoteRefUpdate;
import org.eclipse.jgit.transport.TagOpt;
import org.eclipse.jgit.transport.Transport;

public class Client {
    static void check(Iterable<PushResult> results) {
        for (PushResult result : results) {
            for (RemoteRefUpdate update : result.getRemoteUpdates()) {
                RemoteRefUpdate.Status status = update.getStatus();
                if (status != RemoteRefUpdate.Status.OK && status != RemoteRefUpdate.Status.UP_TO_DATE) {
                    throw new IllegalStateException(update.getRemoteName() + " " + status + " " + update.getMessage());
                }
            }
        }
    }

    static void push(File folder, List<String> words, boolean atomic) throws Exception {
        List<RefSpec> specs = new ArrayList<>();
        for (String word : words) {
            specs.add(new RefSpec(word));
        }
        try (Git git = Git.open(folder)) {
            check(git.push().setRemote("origin").setRefSpecs(specs).setAtomic(atomic).call());
        }
    }

    static void partial(String url, File folder) throws Exception {
        try (Git git = Git.init().setDirectory(folder).setInitialBranch("main").call()) {
            Repository repository = git.getRepository();
            StoredConfig config = repository.getConfig();
            config.setString("remote", "origin", "url", url);
            config.setString("remote", "origin", "fetch", "+refs/heads/*:refs/remotes/origin/*");
            config.setString("remote", "origin", "promisor", "true");
            config.setString("remote", "origin", "partialclonefilter", "blob:none");
            config.save();
            try (Transport transport = Transport.open(repository, "origin")) {
                transport.setFilterSpec(FilterSpec.fromFilterLine("blob:none"));
                transport.setTagOpt(TagOpt.NO_TAGS);
                transport.fetch(NullProgressMonitor.INSTANCE,
                    List.of(new RefSpec("+refs/heads/*:refs/remotes/origin/*")));
            }
        }
    }

    public static void main(String[] words) throws Exception {
        if ("sha256".equals(System.getenv("OBJECT_FORMAT"))) {
            System.err.println("JGit has no SHA-256");
            System.exit(3);
        }
        List<String> rest = Arrays.asList(words).subList(1, words.length);
        switch (words[0]) {
            case "clone", "shallow" -> {
                CloneCommand clone = Git.cloneRepository().setURI(words[1]).setDirectory(new File(words[2]));
                if (words[0].equals("shallow")) {
                    clone.setDepth(Integer.parseInt(words[3]));
                }
                clone.call().close();
            }
            case "fetch" -> {
                try (Git git = Git.open(new File(words[1]))) {
                    git.fetch().setRemote("origin").call();
                }
            }
            case "partial" -> partial(words[1], new File(words[2]));
            case "push" -> push(new File(words[1]), rest.subList(1, rest.size()), false);
            case "atomic" -> push(new File(words[1]), rest.subList(1, rest.size()), true);
            default -> {
                System.err.println("JGit has no " + words[0]);
                System.exit(3);
            }
        }
    }
}
